"""The forms that a report can be written in, by the suffix of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from l4export.errors import InputError
from l4export.reports.document import Document
from l4export.reports.html_form import as_html, check_html
from l4export.reports.json_form import as_json
from l4export.reports.junit_form import as_junit
from l4export.reports.markdown_form import as_markdown

__all__ = ["FORMS", "form_of"]

FORMS: Mapping[str, Callable[[Document], str]] = {
    ".json": as_json,
    ".xml": as_junit,
    ".md": as_markdown,
    ".html": as_html,
}


def form_of(path: Path) -> Callable[[Document], str]:
    """What writes the report for a file, as text.

    Raises:
        InputError: a suffix that is none of them.
        EnvironmentLacks: a package is missing that the form needs.
    """
    form = FORMS.get(path.suffix.lower())
    if form is None:
        raise InputError(f"-o {path}: the name of a report ends in {', '.join(FORMS)}; name it so")
    if form is as_html:
        check_html()
    return form
