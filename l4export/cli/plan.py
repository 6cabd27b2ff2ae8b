"""`l4export plan`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from l4export.cli.sizes import parse_size
from l4export.engine.vision_interface import TILES_PER_CALL
from l4export.errors import CheckFailed, InputError
from l4export.sizing.devices import DEVICES

if TYPE_CHECKING:
    from rich.table import Table

    from l4export.sizing.memory_plan import MemoryPlan, Need

__all__ = ["command"]

_DEVICES = "; ".join(f"{name}: {device.title}" for name, device in DEVICES.items())


@click.command("plan")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--device", type=click.Choice(list(DEVICES), case_sensitive=False), help=f"{_DEVICES}.")
@click.option("--device-memory", metavar="SIZE", help="Memory of another device: 24GB (decimal) or 24GiB (binary).")
@click.option("--context", type=int, help="Tokens that each row must hold.  [default: as many as fit]")
@click.option("--batch", type=click.IntRange(1, 2**20), default=1, show_default=True, help="Rows of tokens.")
@click.option(
    "--vision",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="auto: with the vision tower of a config that has one. none: the text model alone.",
)
@click.option("--vision-dtype", type=click.Choice(["fp32", "fp16"]), help="Float type of the vision tower.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with all sizes in bytes.")
def command(
    checkpoint: Path,
    device: str | None,
    device_memory: str | None,
    context: int | None,
    batch: int,
    vision: str,
    vision_dtype: str | None,
    as_json: bool,
) -> None:
    """Show which weights, KV layouts and KV dtypes fit a device, and up to which context.

    CHECKPOINT is a checkpoint directory or a config.json alone; no weights are read. Without a device, the table shows
    what each combination needs for --context tokens, or for as many as the model allows.

    The exit code is 1 if no combination fits.
    """
    from l4export.sizing.memory_plan import plan

    if device is not None and device_memory is not None:
        raise InputError("--device and --device-memory: give one of them")
    memory = device if device_memory is None else _memory(device_memory)
    planned = plan(checkpoint, memory, context, batch, vision, vision_dtype)
    if as_json:
        click.echo(json.dumps({"checkpoint": str(checkpoint), "device": device, **planned.to_dict()}))
    else:
        _show(str(checkpoint), device, planned, _vision_options(vision, vision_dtype))
    if not planned.fits:
        raise CheckFailed(_shortfall(planned))


def _memory(text: str) -> int:
    """The bytes of --device-memory; a small number alone is not in bytes, whatever it is in."""
    size = parse_size("--device-memory", text)
    if text.strip().replace(".", "").isdigit() and 0 < size < 2**20:
        raise InputError(f"--device-memory {text}: of which unit? write {text}GB or {text}GiB")
    return size


def _shortfall(plan: MemoryPlan) -> str:
    """Say why nothing fits, and what would help."""
    memory = _gb(plan.device_bytes or 0)
    if not plan.needs:
        return "no combination can be built for this model and device; `Left out` says why"
    if plan.choice is None:
        least = min(need.least for need in plan.needs)
        return (
            f"nothing fits {memory} GB, whatever the context: the smallest combination takes {_gb(least)} GB "
            "without its KV cache; take a larger device"
        )
    return (
        f"nothing fits {memory} GB with {plan.context:,} tokens; the most is {plan.choice.max_context:,}: "
        "lower --context or --batch, or take a larger device"
    )


def _vision_options(vision: str, dtype: str | None) -> str:
    """What of the options of `build` about vision is not its default."""
    return " --vision none" if vision == "none" else f" --vision-dtype {dtype}" if dtype else ""


def _show(checkpoint: str, device: str | None, plan: MemoryPlan, vision_options: str) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    memory, limit = plan.device_bytes, plan.config.max_position_embeddings
    console.print(f"{checkpoint}: {plan.parameters:,} parameters, up to {limit:,} tokens")
    where = "no device" if memory is None else f"{device or 'device'} with {_gb(memory)} GB"
    console.print(f"{where}, batch {plan.batch}; 1 GB is 10^9 bytes\n")
    if plan.needs:
        console.print(_heading(plan))
        console.print(_table(plan))
        working = [need.working for need in plan.needs]
        console.print(f"\nWorking memory of {_gb(min(working))} to {_gb(max(working))} GB is included.")
    for line in (*_about_vision(plan), *plan.notes):
        console.print(line)
    for reason in dict.fromkeys(plan.refused.values()):
        console.print(f"Left out: {reason}.")
    if memory is None:
        console.print("Give --device or --device-memory to see what fits, and which to choose.")
    elif plan.choice is not None:
        console.print(_choice(plan.choice, memory, plan.context or limit, vision_options))


def _about_vision(plan: MemoryPlan) -> Iterator[str]:
    """Lines about the vision tower, one for each float type that it has in some combination, and about its tokens."""
    from l4export.sizing.vision_need import image_tokens

    if plan.vision is None:
        return
    most = TILES_PER_CALL[-1]
    for need in dict.fromkeys(need.vision for need in plan.needs if need.vision):
        yield (
            f"Vision tower in {need.dtype}: weights {_gb(need.weights)} + working {_gb(need.working)} + features "
            f"{_gb(need.features)} = {_gb(need.total)} GB, included."
        )
    one, all_of_them = (image_tokens(plan.vision, tiles) for tiles in (1, most))
    yield f"An image takes {one:,} tokens with one tile and {all_of_them:,} with {most}, the most that a call computes."


def _heading(plan: MemoryPlan) -> str:
    if _shows_contexts(plan):
        return "Largest context in tokens, by KV dtype:\n"
    tokens = plan.context or plan.config.max_position_embeddings
    marked = "" if plan.device_bytes is None else " (x: too much)"
    return f"GB in all for {tokens:,} tokens, by KV dtype{marked}:\n"


def _shows_contexts(plan: MemoryPlan) -> bool:
    """Whether the cells of the table are largest contexts, and not bytes."""
    return plan.device_bytes is not None and plan.context is None


def _table(plan: MemoryPlan) -> Table:
    """Make the table: a row for each quantisation and layout, a column for each KV dtype."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("weights", "GB", "layout"):
        table.add_column(name, justify="right" if name == "GB" else "left")
    for name in dict.fromkeys(need.combination.kv_dtype for need in plan.needs):
        table.add_column(name, justify="right", min_width=10)
    rows: dict[tuple[str, str, str], list[Need]] = {}
    for need in plan.needs:
        c = need.combination
        rows.setdefault((c.quant, c.dtype, c.kv_layout), []).append(need)
    above: tuple[str, str] | None = None
    for (quant, dtype, layout), needs in rows.items():
        head = ("", "") if (quant, dtype) == above else (_named(quant, dtype, plan.keeps_codes), _gb(needs[0].weights))
        above = (quant, dtype)
        table.add_row(*head, layout, *(_cell(need, plan) for need in needs))
    return table


def _named(quant: str, dtype: str, keeps_codes: bool) -> str:
    """Name what the weights are."""
    return quant if quant != "none" else f"kept, {dtype}" if keeps_codes else dtype


def _cell(need: Need, plan: MemoryPlan) -> str:
    if _shows_contexts(plan):
        return f"{need.max_context:,}" if need.max_context else "-"
    return _gb(need.total) + ("" if plan.device_bytes is None else "  " if need.total <= plan.device_bytes else " x")


def _choice(need: Need, memory: int, wanted: int, vision_options: str) -> str:
    """Name the options to build with, and the reason."""
    c, reached = need.combination, need.max_context or 0
    reason = "No other combination holds a longer context"
    if reached >= wanted:
        reason = (
            f"It loses the least quality of all combinations that hold {wanted:,} tokens, as measured on a small model "
            "(`l4export quality` measures yours)"
        )
    target = "" if c.target == "ort-cpu" else f"--target {c.target} "
    options = f"{target}--quant {c.quant} --dtype {c.dtype} --kv-layout {c.kv_layout} --kv-dtype {c.kv_dtype}"
    tower = f" + vision {_gb(need.vision.total)}" if need.vision else ""
    parts = f"weights {_gb(need.weights)} + KV {_gb(need.kv)} + working {_gb(need.working)}{tower} = {_gb(need.total)}"
    return (
        f"Choose {options} --max-context {min(reached, wanted)}{vision_options}\n"
        f"{reason}; for {need.context:,} tokens it takes {parts} of {_gb(memory)} GB."
    )


def _gb(size: int) -> str:
    """Write a size in decimal gigabytes, a small one to the megabyte."""
    return f"{size / 1e9:,.1f}" if size >= 10**10 else f"{size / 1e9:.3f}"
