"""A report as Markdown, for the summary of a CI job. What is long is folded."""

from __future__ import annotations

import re
from collections.abc import Iterable

from l4export.errors import printable
from l4export.reports.document import MARK, Document
from l4export.reports.figure import Figure
from l4export.reports.sections import Table

__all__ = ["as_markdown"]

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~@&$])")


def as_markdown(document: Document) -> str:
    """The document in GitHub's dialect. Nothing of a report is taken for markup."""
    parts = [
        f"<!-- {MARK} -->",
        f"## {_text(document.title)}: {document.verdict}",
        *(f"- {_text(reason)}" for reason in document.why),
        _figures(document.demanded, "Nothing was demanded." if document.figures else ""),
        _table(
            Table(
                "", ("gone through", "", ""), tuple((each.what, each.status, each.how) for each in document.exercised)
            )
        ),
        _folded("All figures", _figures(document.figures, "")),
        *(_folded(each.title, _section(each.table)) for each in document.sections),
        _folded("Where this report comes from", _table(Table("", ("", ""), document.identity.rows()))),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _figures(figures: Iterable[Figure], otherwise: str) -> str:
    rows = tuple(
        (each.phase, each.label, each.shown, each.interval, each.demanded, each.remark or each.status)
        for each in figures
    )
    head = ("phase", "figure", "value", "95 % confidence", "demanded", "")
    return _table(Table("", head, rows, numeric=frozenset({2, 3}))) or otherwise


def _section(table: Table) -> str:
    return "\n\n".join(filter(None, (_table(table), _text(table.note))))


def _table(table: Table) -> str:
    """A table without its empty columns; nothing if it has no rows."""
    if not table.rows:
        return ""
    kept = [at for at in range(len(table.head)) if any(row[at] for row in table.rows)]
    lines = [[_text(table.head[at]) for at in kept], ["---:" if at in table.numeric else "---" for at in kept]]
    lines += [[_text(row[at]) for at in kept] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{_text(title)}</summary>\n\n{content}\n\n</details>" if content else ""


def _text(text: str) -> str:
    """A text on one line in which no character is markup, neither of Markdown nor of the HTML that it may have."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[1])};", printable(text))
