"""The forms that a report can be written in, by the suffix of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from l4export.errors import InputError
from l4export.reports.document import Document
from l4export.reports.json_form import as_json

__all__ = ["FORMS", "form_of"]

FORMS: Mapping[str, Callable[[Document], str]] = {".json": as_json}


def form_of(path: Path) -> Callable[[Document], str]:
    """What writes the report for a file, as text.

    Raises:
        InputError: a suffix that is none of them.
    """
    try:
        return FORMS[path.suffix.lower()]
    except KeyError:
        raise InputError(f"-o {path}: the name of a report ends in {', '.join(FORMS)}; name it so") from None
