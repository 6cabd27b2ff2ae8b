"""`l4export parity`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from l4export.cli.reference_options import adapter_option
from l4export.cli.thresholds import parse_threshold
from l4export.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from l4export.parity.by_layer import LayerParityReport
    from l4export.parity.image_prompt import Pictures
    from l4export.parity.images import ImageComparison
    from l4export.parity.tower import TowerComparison
    from l4export.parity.whole_model import ParityReport

__all__ = ["command"]


@click.command("parity")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--reference", required=True, type=click.Path(path_type=Path), help="The checkpoint that ENGINE was built from."
)
@adapter_option
@click.option("--prefill", type=int, default=64, show_default=True, help="Tokens of text fed in one call.")
@click.option(
    "--decode",
    type=int,
    default=32,
    show_default=True,
    help="Tokens fed one by one, and tokens of the greedy continuation.",
)
@click.option(
    "--image",
    "image_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Show this image within the prefill. May be given several times.",
)
@click.option(
    "--images",
    "made_images",
    type=click.Choice(["seeded"]),
    help="Show three pictures of different sizes that the seed makes.",
)
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a threshold. May be given several times.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random tokens.")
@click.option(
    "--dequantized", is_flag=True, help="Compare with a reference that has the engine's own weights, dequantised."
)
@click.option(
    "--stream", is_flag=True, help="Compare layer by layer, with one layer of the reference in memory at a time."
)
@click.option(
    "--provider", type=click.Choice(["cpu"]), help="Execute an ort-cuda engine on this machine's CPU instead."
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report as JSON to this file, or to standard output if it is -.",
)
def command(
    engine: Path,
    reference: Path,
    adapters: tuple[Path, ...],
    prefill: int,
    decode: int,
    image_files: tuple[Path, ...],
    made_images: Literal["seeded"] | None,
    thresholds: tuple[str, ...],
    seed: int,
    dequantized: bool,
    stream: bool,
    provider: str | None,
    json_file: Path | None,
) -> None:
    """Compare ENGINE with transformers in float32 on the reference checkpoint's own weights.

    ENGINE may be a checkpoint of --target compressed-tensors, which transformers runs.

    Both run the same seeded tokens. The logits of every position are compared, on prefill and on teacher-forced decode,
    and then a greedy continuation. With --image or --images, the prompt shows images, and what the engine sees of them
    is compared too. With --stream, the hidden states, expert choices, keys and values of every layer are compared
    instead of the continuation, and of a vision tower what each layer makes: this works for models of any size, and
    names the first layer that departs.

    The exit code is 1 if a threshold is not met. This command needs the `reference` extra.
    """
    from rich.console import Console

    from l4export.parity.by_layer import check_layers
    from l4export.parity.whole_model import check_parity

    if stream and provider is not None:
        raise InputError("--provider: --stream runs everything on a CPU; leave one of them out")
    if image_files and made_images:
        raise InputError("--images: --image names others; leave one of them out")
    images: Pictures = made_images or image_files
    if json_file is not None and str(json_file) != "-":
        json_file.touch()  # an unwritable file is found now, not after minutes of work
    limits = dict(parse_threshold(item, "max_relative_difference=1e-4") for item in thresholds)
    check: Callable[..., ParityReport | LayerParityReport]
    check = check_layers if stream else partial(check_parity, provider=provider)
    check = partial(check, images=images, adapters=adapters)
    with Console(stderr=True).status("") as status:
        report = check(engine, reference, prefill, decode, limits, seed, dequantized, status.update)
    if json_file is not None and str(json_file) == "-":
        click.echo(report.to_json())
    else:
        if json_file is not None:
            json_file.write_text(report.to_json() + "\n", encoding="utf-8")
        _show(report)
    if not report.passed:
        raise CheckFailed(f"{engine}: not at parity: {'; '.join(report.failures)}")


def _show(report: ParityReport | LayerParityReport) -> None:
    from rich.console import Console

    from l4export.parity.whole_model import ParityReport

    console = Console()
    if isinstance(report, ParityReport):
        _show_logits(console, report)
    else:
        if report.tower:
            _show_tower(console, report.tower)
        _show_layers(console, report)
    if report.images:
        _show_images(console, report.images, report.thresholds)
    crossed = report.chunk_boundaries
    remark = "" if crossed else " (chunking was not exercised)"
    console.print(f"chunk boundaries crossed: {crossed}{remark}", highlight=False)
    verdict = "passed" if report.passed else "FAILED"
    if not report.thresholds:
        verdict = "no threshold applies to the quality of a quantised engine; set one with --threshold NAME=VALUE"
    console.print(f"parity: {verdict}", highlight=False, soft_wrap=True)


def _show_images(console: Console, images: ImageComparison, thresholds: Mapping[str, float]) -> None:
    from rich.table import Table

    grids = ", ".join(f"{rows} x {columns}" for rows, columns in images.grids)
    seen = f"images on grids of {grids}: {images.tiles} tiles, {images.feature_rows} tokens with features"
    console.print(seen, highlight=False, soft_wrap=True)
    table = Table()
    for heading in ("", "figure", "threshold"):
        table.add_column(heading, justify="right" if heading else "left")
    figures = {**vars(images), **vars(images.processor)}
    for label, name, form in _IMAGE_ROWS:
        value, limit = figures[name], thresholds.get(name)
        shown = "not compared" if value is None else format(value, form)
        table.add_row(label, shown, "" if limit is None else f"{limit:g}")
    console.print(table)
    for name, reason in images.processor.not_compared.items():
        console.print(f"{name} is not compared: {reason}", highlight=False, soft_wrap=True)


def _show_logits(console: Console, report: ParityReport) -> None:
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
    console.print(table)
    console.print(f"executed on {report.provider}", highlight=False, soft_wrap=True)
    if report.routing_ties:
        console.print(
            f"nearly tied choices of experts in which the reference followed the engine: {report.routing_ties}",
            highlight=False,
        )
    matched = round(report.greedy_prefix * report.greedy_tokens)
    stopped = (
        " (they end at a near tie, and later tokens cannot be compared)" if report.greedy_ended_at_near_tie else ""
    )
    console.print(f"greedy tokens in common: {matched} of {report.greedy_tokens}{stopped}", highlight=False)


def _show_tower(console: Console, tower: TowerComparison) -> None:
    from rich.table import Table

    table = Table(title="the vision tower", title_justify="left")
    for heading in ("stage", "difference", "difference, rms", "threshold"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in tower.stages:
        mark = " <- first to depart" if stage.stage == tower.first_departure else ""
        limit = "" if stage.threshold is None else f"{stage.threshold:g}"
        table.add_row(f"{stage.stage}{mark}", f"{stage.difference:.3g}", f"{stage.difference_rms:.3g}", limit)
    console.print(table)


def _show_layers(console: Console, report: LayerParityReport) -> None:
    from rich.table import Table

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


_IMAGE_ROWS = (
    ("equal ids of a prompt", "ids_agreement", ".4f"),
    ("pixels, max |difference|", "pixel_difference", ".3g"),
    ("features, max |difference|", "max_feature_difference", ".3g"),
    ("... of the largest |feature|", "feature_difference", ".3g"),
    ("features, mean |difference|", "mean_feature_difference", ".3g"),
)

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
