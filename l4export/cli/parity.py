"""`l4export parity`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from l4export.cli.judging import accept, identified
from l4export.cli.reference_options import adapter_option
from l4export.cli.report_output import (
    ReportCommand,
    Reporting,
    allow_unjudged_option,
    exit_code_of,
    report_options,
)
from l4export.cli.thresholds import parse_threshold
from l4export.errors import InputError

if TYPE_CHECKING:
    from l4export.parity.by_layer import LayerParityReport
    from l4export.parity.image_prompt import Pictures
    from l4export.parity.whole_model import ParityReport

__all__ = ["command"]


@click.command("parity", cls=ReportCommand)
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
@allow_unjudged_option
@report_options
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
    allow_unjudged: bool,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Compare ENGINE with transformers in float32 on the reference checkpoint's own weights.

    ENGINE may be a checkpoint of --target compressed-tensors, which transformers runs.

    Both run the same seeded tokens. The logits of every position are compared, on prefill and on teacher-forced decode,
    and then a greedy continuation. With --image or --images, the prompt shows images, and what the engine sees of them
    is compared too. With --stream, the hidden states, expert choices, keys and values of every layer are compared
    instead of the continuation, and of a vision tower what each layer makes: this works for models of any size, and
    names the first layer that departs.

    The exit code is 1 if a threshold is not met, and 5 if meeting all of them proves nothing: nothing is demanded of
    the logits, or no chunk boundary was crossed. This command needs the `reference` extra.
    """
    from rich.console import Console

    from l4export.cli.parity_tables import show_parity
    from l4export.parity.by_layer import check_layers
    from l4export.parity.document import parity_document
    from l4export.parity.whole_model import check_parity

    with Reporting("parity --stream" if stream else "parity", files, as_json) as reporting:
        if stream and provider is not None:
            raise InputError("--provider: --stream runs everything on a CPU; leave one of them out")
        if image_files and made_images:
            raise InputError("--images: --image names others; leave one of them out")
        images: Pictures = made_images or image_files
        limits = dict(parse_threshold(item, "max_relative_difference=1e-4") for item in thresholds)
        check: Callable[..., ParityReport | LayerParityReport]
        check = check_layers if stream else partial(check_parity, provider=provider)
        check = partial(check, images=images, adapters=adapters)
        with Console(stderr=True).status("") as status:
            report = check(engine, reference, prefill, decode, limits, seed, dequantized, status.update)
            if reporting.wanted:
                identity = identified(reporting, engine, reference, adapters, status.update)
                reporting.finish(parity_document(report, identity, exit_code_of(report.verdict, allow_unjudged)))
    if not as_json:
        show_parity(report)
    accept(engine, report, "not at parity", allow_unjudged)
