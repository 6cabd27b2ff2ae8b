"""`--threshold NAME=VALUE`, of the commands that judge."""

from __future__ import annotations

from l4export.errors import InputError

__all__ = ["parse_threshold"]


def parse_threshold(item: str, example: str) -> tuple[str, float]:
    """Name and number.

    Raises:
        InputError: it is not written so; `example` is shown.
    """
    name, _, value = item.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise InputError(f"--threshold {item}: write NAME=VALUE, as in {example}") from None
