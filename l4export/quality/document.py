"""The report of `l4export quality` as a document, from which files are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from l4export.evidence.exercised import boundary_marks
from l4export.evidence.worst_tokens import worst_tokens_table
from l4export.quality.measure import Damage, QualityReport
from l4export.reports.document import Document
from l4export.reports.figure import Figure
from l4export.reports.identity import Identity
from l4export.reports.sections import Bar, Bars, Curve, Section, Table, histogram

__all__ = ["figures_of", "quality_document", "sections_of"]

_FIGURES = (
    ("perplexity", "perplexity", ".4f"),
    ("reference_perplexity", "perplexity of the reference", ".4f"),
    ("perplexity_ratio", "perplexity ratio, paired", ".4f"),
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
        sections=sections_of(report),
    )


def sections_of(report: QualityReport) -> tuple[Section, ...]:
    """Where the damage comes from, where in the windows it is, the worst tokens, and what was measured on what."""
    marks, marked = boundary_marks(report.chunk_size, report.window)
    along = Curve(
        title="KL along the window",
        points=tuple((float(at), kl) for at, kl in report.kl_by_position),
        across="position in the window",
        axis="mean KL, nats a token",
        marks=marks,
        marked=marked,
    )
    return (
        *_breakdown(report),
        along,
        histogram("KL of the tokens", report.kl_decades, "tokens by KL, in nats"),
        worst_tokens_table(report.worst),
        _facts(report),
    )


def _breakdown(report: QualityReport) -> Iterator[Section]:
    """Bars of the parts; a sentence where nothing was broken down."""
    for what, parts in (("layer", report.layers), ("kind of weight", report.kinds)):
        if parts:
            bars = tuple(Bar.of(_named(what, part), part.kl) for part in parts)
            yield Bars(f"By {what}", bars, "mean KL in nats a token if only this were quantised")
    if report.together is not None:
        rows = (("all of these, in the reference", f"{report.together:.4g}"), ("the engine", f"{report.kl:.4g}"))
        note = "The difference comes from rounding activations. Parts need not add up to the whole."
        yield Table("All parts together", ("", "KL"), rows, note)


def _named(what: str, part: Damage) -> str:
    bits = "" if part.bits_per_weight is None else f", {part.bits_per_weight:.2f} bits"
    return f"layer {part.name}{bits}" if what == "layer" else f"{part.name}{bits}"


def _facts(report: QualityReport) -> Table:
    """What is known of the engine and the text."""
    text = f"{report.text['name']}, {report.text['tokens']:,} tokens in windows of {report.window}"
    facts = {name.replace("_", " "): _shown(value) for name, value in report.facts.items()} | {"text": text}
    return Table("The engine and the text", ("", ""), tuple(facts.items()))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if isinstance(value, float) else str(value)
