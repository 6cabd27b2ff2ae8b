"""The report of `l4export quality` as a document, from which files are written."""

from __future__ import annotations

import dataclasses

from l4export.quality.measure import QualityReport
from l4export.reports.document import Document
from l4export.reports.figure import Figure
from l4export.reports.identity import Identity

__all__ = ["figures_of", "quality_document"]

_FIGURES = (
    ("perplexity", "perplexity", ".4f"),
    ("reference_perplexity", "... of the reference", ".4f"),
    ("perplexity_ratio", "... ratio, paired", ".4f"),
    ("kl", "KL(reference || engine), nats a token", ".4g"),
    ("top1_agreement", "top-1 agreement", ".4f"),
)


def figures_of(report: QualityReport) -> tuple[Figure, ...]:
    """The figures with their intervals, and the KL of parts that were measured by themselves."""
    whole = [
        Figure(
            "text",
            name,
            label,
            (figure := getattr(report, name)).value,
            form,
            "",
            figure.low,
            figure.high,
            report.thresholds.get(name),
        )
        for name, label, form in _FIGURES
    ]
    parts = [
        Figure(
            f"{what} {part.name}",
            "kl",
            "KL if only this were quantised",
            part.kl.value,
            ".4g",
            "",
            part.kl.low,
            part.kl.high,
        )
        for what, those in (("layer", report.layers), ("kind", report.kinds))
        for part in those
    ]
    return (*whole, Figure("text", "kl_max", "KL of the worst token", report.kl_max, ".4g"), *parts)


def quality_document(report: QualityReport, identity: Identity, exit_code: int) -> Document:
    """The document of a measurement, which ended the program with `exit_code`."""
    return Document(
        kind="quality",
        verdict=report.verdict,
        why=report.why,
        exit_code=exit_code,
        identity=dataclasses.replace(identity, provider=report.provider),
        figures=figures_of(report),
        exercised=report.exercised,
        details=report.to_dict(),
    )
