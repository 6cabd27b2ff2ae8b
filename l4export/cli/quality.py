"""`l4export quality`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from l4export.cli.judging import accept, identified, show_exercised, show_verdict
from l4export.cli.reference_options import adapter_option
from l4export.cli.report_output import (
    ReportCommand,
    Reporting,
    allow_unjudged_option,
    exit_code_of,
    report_options,
)
from l4export.cli.steps import step_progress
from l4export.cli.thresholds import parse_threshold

if TYPE_CHECKING:
    from rich.console import Console

    from l4export.quality.measure import Damage, QualityReport

__all__ = ["command"]


@click.command("quality", cls=ReportCommand)
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--reference", required=True, type=click.Path(path_type=Path), help="The checkpoint that ENGINE was built from."
)
@adapter_option
@click.option(
    "--text",
    required=True,
    type=click.Path(path_type=Path),
    help="Text, token ids (.json) or conversations with images (.jsonl) to measure on.",
)
@click.option(
    "--window", type=int, help="Tokens of one window of the text.  [default: 1024, at most the engine's context]"
)
@click.option(
    "--breakdown/--no-breakdown",
    default=True,
    show_default=True,
    help="Also measure each layer and each kind of weight.",
)
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a threshold for kl, perplexity_ratio or top1_agreement. May be given several times.",
)
@allow_unjudged_option
@report_options
def command(
    engine: Path,
    reference: Path,
    adapters: tuple[Path, ...],
    text: Path,
    window: int | None,
    breakdown: bool,
    thresholds: tuple[str, ...],
    allow_unjudged: bool,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Compare ENGINE on a text with PyTorch in float32 on the reference checkpoint's own weights.

    ENGINE may be a checkpoint of --target compressed-tensors, which transformers runs.

    The report has perplexity, KL(reference || engine) and agreement with 95 % confidence intervals, and the KL that
    each layer and each kind of weight would cause alone.

    The exit code is 1 if a threshold is not met, and 5 if none was set. This command needs the `reference` extra.
    """
    from l4export.quality.document import quality_document
    from l4export.quality.measure import measure_quality

    with Reporting("quality", files, as_json) as reporting:
        limits = dict(parse_threshold(item, "kl=0.05") for item in thresholds)
        with step_progress() as tell:
            report = measure_quality(engine, reference, text, window, breakdown, limits, tell, adapters)
            if reporting.wanted:
                identity = identified(reporting, engine, reference, adapters, tell)
                reporting.finish(quality_document(report, identity, exit_code_of(report.verdict, allow_unjudged)))
    if not as_json:
        _show(report)
    accept(engine, report, "not good enough", allow_unjudged)


def _show(report: QualityReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from l4export.quality.document import figures_of

    console = Console(markup=False, emoji=False)
    table = Table(title=f"{report.engine} against {report.reference}", title_justify="left")
    for heading in (f"{report.tokens} tokens", "", "95 % confidence"):
        table.add_column(heading, justify="right" if heading != f"{report.tokens} tokens" else "left")
    for figure in figures_of(report):
        if figure.interval and figure.phase == "text":
            table.add_row(figure.label, figure.shown, figure.interval)
    console.print(table)
    console.print(f"bits per weight: {report.facts['bits_per_weight']:.2f}", highlight=False)
    if report.together is not None:
        if report.layers:  # none where only the KV cache is quantised
            _show_parts(console, "layer", report.layers)
        _show_parts(console, "kind", report.kinds)
        console.print(f"all of them together, in the reference: KL {report.together:.4g}", highlight=False)
    show_exercised(console, report)
    show_verdict(console, "quality", report)


def _show_parts(console: Console, what: str, parts: Sequence[Damage]) -> None:
    from rich.table import Table

    table = Table(title=f"KL if only this {what} were quantised", title_justify="left")
    for heading in (what, "bits per weight", "KL", "95 % confidence"):
        table.add_column(heading, justify="left" if heading == what else "right")
    for part in parts:
        bits = "-" if part.bits_per_weight is None else f"{part.bits_per_weight:.2f}"
        table.add_row(part.name, bits, f"{part.kl.value:.4g}", f"{part.kl.low:.4g} to {part.kl.high:.4g}")
    console.print(table)
