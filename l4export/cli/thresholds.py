"""`--threshold NAME=VALUE` of the commands that check an engine."""

from __future__ import annotations

from l4export.errors import InputError

__all__ = ["parse_threshold"]


def parse_threshold(item: str, example: str) -> tuple[str, float]:
    """Return the name and the number of an option NAME=VALUE.

    Raises:
        InputError: the option has another form. The message shows `example`.
    """
    name, _, value = item.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise InputError(f"--threshold {item}: write NAME=VALUE, as in {example}") from None
