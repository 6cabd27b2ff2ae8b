"""The reports of `l4export parity` as documents, from which files are written."""

from __future__ import annotations

import dataclasses

from l4export.parity.by_layer import LayerParityReport
from l4export.parity.figures import figures_of
from l4export.parity.sections import sections_of
from l4export.parity.whole_model import ParityReport
from l4export.reports.document import Document
from l4export.reports.identity import Identity

__all__ = ["parity_document"]


def parity_document(report: ParityReport | LayerParityReport, identity: Identity, exit_code: int) -> Document:
    """The document of a comparison, which ended the program with `exit_code`."""
    return Document(
        kind="parity --stream" if isinstance(report, LayerParityReport) else "parity",
        verdict=report.verdict,
        why=report.why,
        exit_code=exit_code,
        identity=dataclasses.replace(identity, provider=report.provider, seed=report.seed),
        figures=figures_of(report),
        exercised=report.exercised,
        details=report.to_dict(),
        sections=sections_of(report),
    )
