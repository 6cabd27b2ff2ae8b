"""`l4export parity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from l4export.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from l4export.parity import ParityReport

__all__ = ["command"]


@click.command("parity")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--reference", required=True, type=click.Path(path_type=Path), help="The checkpoint it was built from.")
@click.option("--prefill", type=int, default=64, show_default=True, help="Tokens fed in one go.")
@click.option("--decode", type=int, default=32, show_default=True, help="Tokens fed one by one, and greedy tokens.")
@click.option("--threshold", "thresholds", multiple=True, metavar="NAME=VALUE", help="Override a threshold.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Chooses the tokens.")
@click.option("--dequantized", is_flag=True, help="Give the reference the engine's own weights, dequantised.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report to a file; - prints it.")
def command(
    engine: Path,
    reference: Path,
    prefill: int,
    decode: int,
    thresholds: tuple[str, ...],
    seed: int,
    dequantized: bool,
    json_file: Path | None,
) -> None:
    """Compare ENGINE with transformers in float32 on the reference checkpoint's own weights.

    Logits of every position, on prefill and on teacher-forced decode, and a greedy continuation. Exit code 1 when a
    threshold is not met. Needs the `reference` extra.
    """
    from rich.console import Console

    from l4export.parity import check_parity

    if json_file is not None and str(json_file) != "-":
        json_file.touch()  # better to fail now than after minutes of work
    limits = dict(_threshold(item) for item in thresholds)
    with Console(stderr=True).status("") as status:
        report = check_parity(engine, reference, prefill, decode, limits, seed, dequantized, status.update)
    if json_file is not None and str(json_file) == "-":
        click.echo(report.to_json())
    else:
        if json_file is not None:
            json_file.write_text(report.to_json() + "\n", encoding="utf-8")
        _show(report)
    if not report.passed:
        raise CheckFailed(f"{engine}: not at parity: {'; '.join(report.failures)}")


def _threshold(item: str) -> tuple[str, float]:
    name, _, value = item.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise InputError(f"--threshold {item}: write NAME=VALUE, as in max_relative_difference=1e-4") from None


def _show(report: ParityReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report.engine} against {report.reference}", title_justify="left")
    table.add_column("")
    table.add_column(f"prefill ({report.prefill_tokens})", justify="right")
    table.add_column(f"decode ({report.decode_tokens})", justify="right")
    table.add_column("threshold", justify="right")
    phases = (report.prefill, report.decode)
    for label, name, form in _ROWS:
        limit = report.thresholds.get(name)
        figures = ["-" if phase is None else format(getattr(phase, name), form) for phase in phases]
        table.add_row(label, *figures, "" if limit is None else f"{limit:g}")
    console = Console()
    console.print(table)
    matched = round(report.greedy_prefix * report.greedy_tokens)
    stopped = " (then a near tie; what follows cannot be compared)" if report.greedy_ended_at_near_tie else ""
    console.print(f"greedy tokens in common: {matched} of {report.greedy_tokens}{stopped}", highlight=False)
    crossed = report.chunk_boundaries
    remark = "" if crossed else " (chunking was not exercised)"
    console.print(f"chunk boundaries crossed: {crossed}{remark}", highlight=False)
    verdict = "passed" if report.passed else "FAILED"
    if not report.thresholds:
        verdict = "nothing was demanded of a quantised engine's quality; --threshold NAME=VALUE does"
    console.print(f"parity: {verdict}", highlight=False, soft_wrap=True)


_ROWS = (
    ("max |difference|", "max_abs_difference", ".3g"),
    ("... of the largest |logit|", "max_relative_difference", ".3g"),
    ("mean |difference|", "mean_abs_difference", ".3g"),
    ("KL(reference || engine), mean", "kl_mean", ".3g"),
    ("KL(reference || engine), max", "kl_max", ".3g"),
    ("top-1 agreement", "top1_agreement", ".4f"),
    ("near ties apart", "near_ties", "d"),
    ("top-5 overlap", "top5_overlap", ".4f"),
)
