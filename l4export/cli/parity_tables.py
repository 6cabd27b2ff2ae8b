"""What `l4export parity` prints of its reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from l4export.cli.judging import show_exercised, show_verdict
from l4export.parity.figures import figures_of
from l4export.parity.whole_model import ParityReport
from l4export.reports.figure import Figure

if TYPE_CHECKING:
    from l4export.parity.by_layer import LayerParityReport
    from l4export.parity.images import ImageComparison
    from l4export.parity.tower import TowerComparison

__all__ = ["show_parity"]


def show_parity(report: ParityReport | LayerParityReport) -> None:
    """Print the figures, what the comparison went through, and the verdict."""
    console, figures = Console(markup=False, emoji=False), figures_of(report)
    if isinstance(report, ParityReport):
        _show_logits(console, report, figures)
    else:
        if report.tower:
            _show_tower(console, report.tower)
        _show_layers(console, report)
    if report.images:
        _show_images(console, report.images, [figure for figure in figures if figure.phase == "images"])
    show_exercised(console, report)
    show_verdict(console, "parity", report)


def _show_images(console: Console, images: ImageComparison, figures: Sequence[Figure]) -> None:
    grids = ", ".join(f"{rows} x {columns}" for rows, columns in images.grids)
    seen = f"images on grids of {grids}: {images.tiles} tiles, {images.feature_rows} tokens with features"
    console.print(seen, highlight=False, soft_wrap=True)
    table = Table()
    for heading in ("", "figure", "threshold"):
        table.add_column(heading, justify="right" if heading else "left")
    for figure in figures:
        table.add_row(figure.label, "not compared" if figure.value is None else figure.shown, _threshold(figure))
    console.print(table)
    for figure in figures:
        if figure.remark:
            console.print(f"{figure.name} is not compared: {figure.remark}", highlight=False, soft_wrap=True)


def _show_logits(console: Console, report: ParityReport, figures: Sequence[Figure]) -> None:
    table = Table(title=f"{report.engine} against {report.reference}", title_justify="left")
    table.add_column("")
    table.add_column(f"prefill ({report.prefill_tokens})", justify="right")
    table.add_column(f"decode ({report.decode_tokens})", justify="right")
    table.add_column("threshold", justify="right")
    decode = {figure.name: figure.shown for figure in figures if figure.phase == "decode"}
    for figure in figures:
        if figure.phase == "prefill":
            table.add_row(figure.label, figure.shown, decode.get(figure.name, "-"), _threshold(figure))
    console.print(table)
    console.print(f"executed on {report.provider}", highlight=False, soft_wrap=True)
    matched = round(report.greedy_prefix * report.greedy_tokens)
    stopped = (
        " (they end at a near tie, and later tokens cannot be compared)" if report.greedy_ended_at_near_tie else ""
    )
    console.print(f"greedy tokens in common: {matched} of {report.greedy_tokens}{stopped}", highlight=False)


def _show_tower(console: Console, tower: TowerComparison) -> None:
    table = Table(title="the vision tower", title_justify="left")
    for heading in ("stage", "difference", "difference, rms", "threshold"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in tower.stages:
        mark = " <- first to depart" if stage.stage == tower.first_departure else ""
        limit = "" if stage.threshold is None else f"{stage.threshold:g}"
        table.add_row(f"{stage.stage}{mark}", f"{stage.difference:.3g}", f"{stage.difference_rms:.3g}", limit)
    console.print(table)


def _show_layers(console: Console, report: LayerParityReport) -> None:
    table = Table(title=f"{report.engine} against {report.reference}", title_justify="left")
    for heading in ("layer", "hidden", "hidden, rms", "keys", "values", "router", "expert agreement", "near ties"):
        table.add_column(heading, justify="right")
    for item in report.layers:
        figures = (item.hidden, item.hidden_rms, item.keys, item.values, item.router)
        shown = ["-" if value is None else f"{value:.3g}" for value in figures]
        choices = ["-", "-"] if item.near_ties is None else [f"{item.expert_agreement:.4f}", str(item.near_ties)]
        mark = " <- first to depart" if item.layer == report.first_departure else ""
        table.add_row(f"{item.layer}{mark}", *shown, *choices)
    console.print(table)
    logits = report.logits
    console.print(
        f"logits: max |difference| {logits.max_relative_difference:.3g} of the largest, KL mean {logits.kl_mean:.3g}, "
        f"max {logits.kl_max:.3g}, top-1 agreement {logits.top1_agreement:.4f}",
        highlight=False,
        soft_wrap=True,
    )


def _threshold(figure: Figure) -> str:
    return "" if figure.threshold is None else f"{figure.threshold:g}"
