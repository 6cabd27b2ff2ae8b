"""A report of any command, in the one form from which files are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from l4export.reports.exercised import Exercised
from l4export.reports.figure import Figure
from l4export.reports.identity import Identity
from l4export.reports.sections import Section

__all__ = ["MARK", "SCHEMA_VERSION", "Document", "Kind", "error_document"]

SCHEMA_VERSION = 1
"""Of the JSON form, whose schema is `report.schema.json` beside this file."""

MARK = "l4export-report"
"""What every form has in its first lines, so that only a report is ever replaced by one."""

Kind = Literal["parity", "parity --stream", "quality", "bench"]


@dataclass(frozen=True)
class Document:
    """What a command found.

    Attributes:
        kind: The command.
        verdict: `passed`, `failed` or `not judged`; `measured` where nothing is judged; `error` where the command ended
            before it could say.
        why: Reasons for a verdict that is not `passed`.
        exit_code: Of the command.
        identity: Where the report comes from.
        figures: Everything that was measured and can be demanded.
        exercised: What the comparison went through.
        details: All that the command knows, as JSON values.
        sections: What a person is shown beside the figures.
    """

    kind: Kind
    verdict: Literal["passed", "failed", "not judged", "measured", "error"]
    why: tuple[str, ...]
    exit_code: int
    identity: Identity
    figures: tuple[Figure, ...] = ()
    exercised: tuple[Exercised, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()

    @property
    def title(self) -> str:
        """What it is a report of."""
        engine, reference = self.identity.engine, self.identity.reference
        of = f": {engine.path}" if engine else ""
        return f"l4export {self.kind}{of}{f' against {reference.path}' if reference else ''}"

    @property
    def demanded(self) -> tuple[Figure, ...]:
        """The figures of which something is demanded."""
        return tuple(figure for figure in self.figures if figure.threshold is not None)

    @property
    def phases(self) -> dict[str, list[Figure]]:
        """All figures, by their phases."""
        found: dict[str, list[Figure]] = {}
        for figure in self.figures:
            found.setdefault(figure.phase, []).append(figure)
        return found


def error_document(kind: Kind, message: str, exit_code: int, identity: Identity) -> Document:
    """The report of a command that ended in an error of one line."""
    return Document(kind, "error", (message,), exit_code, identity)
