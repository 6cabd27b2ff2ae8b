"""`l4export bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from l4export.cli.report_output import ReportCommand, Reporting, report_options

if TYPE_CHECKING:
    from l4export.benchmark.measure import BenchReport

__all__ = ["command"]


@click.command("bench", cls=ReportCommand)
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--prefill", type=int, default=512, show_default=True, help="Tokens of the prompt.")
@click.option("--decode", type=int, default=64, show_default=True, help="Tokens fed one by one after the prompt.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Number of runs; the medians are shown.")
@click.option(
    "--images",
    type=int,
    metavar="N",
    help="Also measure the vision tower, and the first token of a prompt that shows N images before the --prefill.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a call.  [default: one a core]")
@report_options
def command(
    engine: Path,
    prefill: int,
    decode: int,
    repeats: int,
    images: int | None,
    threads: int | None,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Measure ENGINE: speed, time to first token, loading, memory, and use of the memory bandwidth.

    The engine runs one row of random tokens, after a warm-up. Decoding cannot be faster than the machine's read
    bandwidth, which is measured with the same number of threads, divided by the bytes of weights that one token reads:
    all weights, but only the chosen experts and one row of the embedding.
    """
    from rich.console import Console

    from l4export.benchmark.measure import bench
    from l4export.cli.judging import identified

    with Reporting("bench", files, as_json) as reporting:
        with Console(stderr=True).status("") as status:
            report = bench(engine, prefill, decode, repeats, threads, status.update, images)
        if reporting.wanted:
            from l4export.benchmark.document import bench_document

            reporting.finish(bench_document(report, identified(reporting, engine)))
    if not as_json:
        _show(report)


def _show(report: BenchReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from l4export.benchmark.document import facts_of, figures_of

    (_, where), *facts = facts_of(report)
    table = Table(title=f"{report.engine}: {where}", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for figure in figures_of(report):
        table.add_row(figure.label, figure.shown)
    for fact in facts:
        table.add_row(*fact)
    Console(markup=False, emoji=False).print(table)
