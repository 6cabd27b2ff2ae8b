"""A report as JSON, for programs."""

from __future__ import annotations

import dataclasses
import json

from l4export.reports.document import MARK, SCHEMA_VERSION, Document
from l4export.reports.verdict import finite

__all__ = ["as_json"]


def as_json(document: Document) -> str:
    """The document as `report.schema.json` describes it, in ASCII. A figure that is not finite is null."""
    told = {
        "format": MARK,
        "schema_version": SCHEMA_VERSION,
        "kind": document.kind,
        "verdict": document.verdict,
        "why": document.why,
        "exit_code": document.exit_code,
        "identity": dataclasses.asdict(document.identity),
        "exercised": [vars(each) for each in document.exercised],
        "figures": [figure.to_dict() for figure in document.figures],
        "details": document.details,
    }
    return json.dumps(finite(told), indent=1, allow_nan=False) + "\n"
