"""`l4export plan`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l4export.cli.sizes import parse_size
from l4export.errors import CheckFailed, InputError
from l4export.sizing.devices import DEVICES

if TYPE_CHECKING:
    from rich.table import Table

    from l4export.model.config import ModelConfig
    from l4export.sizing.memory_plan import MemoryPlan, Need

__all__ = ["command"]

_DEVICES = "; ".join(f"{name}: {device.title}" for name, device in DEVICES.items())


@click.command("plan")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--device", type=click.Choice(list(DEVICES), case_sensitive=False), help=f"{_DEVICES}.")
@click.option("--device-memory", metavar="SIZE", help="Memory of another device: 24GB (decimal) or 24GiB (binary).")
@click.option("--context", type=int, help="Tokens that each row must hold.  [default: as many as fit]")
@click.option("--batch", type=click.IntRange(1, 2**20), default=1, show_default=True, help="Rows of tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, all sizes in bytes.")
def command(
    checkpoint: Path, device: str | None, device_memory: str | None, context: int | None, batch: int, as_json: bool
) -> None:
    """Say what fits a device: weights and KV cache for every quantisation, KV layout and KV dtype.

    CHECKPOINT is a checkpoint directory or a config.json alone; no weights are read. Without a device, what each
    combination needs is shown for --context or the model's own limit.

    Exit code 1 if no combination fits.
    """
    from l4export.checkpoint import read_config
    from l4export.sizing.memory_plan import plan_memory

    memory = _memory(device, device_memory)
    config = read_config(checkpoint)
    plan = plan_memory(config, memory, context, batch)
    title = {"checkpoint": str(checkpoint), "device": device, "device_bytes": memory, "batch": batch}
    if as_json:
        click.echo(json.dumps({**title, "context": context, **_document(config, plan, memory)}))
    else:
        _show(title, config, plan, context)
    _check_fits(plan, memory, context)


def _memory(device: str | None, size: str | None) -> int | None:
    if device is not None and size is not None:
        raise InputError("--device and --device-memory: give one of them")
    if size is None:
        return None if device is None else DEVICES[device].memory
    memory = parse_size("--device-memory", size)
    if memory < 1:
        raise InputError(f"--device-memory {size}: a device has at least one byte")
    return memory


def _check_fits(plan: MemoryPlan, memory: int | None, context: int | None) -> None:
    """Exit code 1, and what would help, if the device is too small."""
    if memory is None:
        return
    if plan.choice is None:
        least = min(need.weights + need.working for need in plan.needs)
        raise CheckFailed(
            f"nothing fits {_gb(memory)} GB, whatever the context: the smallest combination takes {_gb(least)} GB "
            "without its KV cache; take a larger device"
        )
    if context is not None and plan.choice.total > memory:
        raise CheckFailed(
            f"nothing fits {_gb(memory)} GB with {context:,} tokens; the most is {plan.choice.max_context:,}: "
            "lower --context or --batch, or take a larger device"
        )


def _document(config: ModelConfig, plan: MemoryPlan, memory: int | None) -> dict[str, Any]:
    from l4export.model.tensors import parameter_count

    return {
        "parameters": parameter_count(config).total,
        "max_position_embeddings": config.max_position_embeddings,
        "attention_chunk_size": config.attention_chunk_size,
        "chunked_layers": sum(config.chunked_layers),
        "layers": config.num_hidden_layers,
        "combinations": [_record(need, memory) for need in plan.needs],
        "refused": [{**dataclasses.asdict(each), "reason": why} for each, why in plan.refused.items()],
        "choice": None if plan.choice is None else _record(plan.choice, memory),
    }


def _record(need: Need, memory: int | None) -> dict[str, Any]:
    return {
        **dataclasses.asdict(need.combination),
        "loss_percent": need.combination.loss,
        "context": need.context,
        "weights_bytes": need.weights,
        "kv_bytes": need.kv,
        "working_bytes": need.working,
        "total_bytes": need.total,
        "fits": None if memory is None else need.total <= memory,
        "max_context": need.max_context,
    }


def _show(title: dict[str, Any], config: ModelConfig, plan: MemoryPlan, context: int | None) -> None:
    from rich.console import Console

    from l4export.model.tensors import parameter_count

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    memory, limit = title["device_bytes"], config.max_position_embeddings
    device = "no device" if memory is None else f"{title['device'] or 'device'} with {_gb(memory)} GB"
    console.print(f"{title['checkpoint']}: {parameter_count(config).total:,} parameters, up to {limit:,} tokens")
    console.print(f"{device}, batch {title['batch']}; 1 GB is 10^9 bytes\n")
    longest = memory is not None and context is None
    if longest:
        console.print("Largest context in tokens, by KV dtype:\n")
    else:
        marked = "" if memory is None else " (x: too much)"
        console.print(f"GB in all for {context or limit:,} tokens, by KV dtype{marked}:\n")
    console.print(_table(plan, memory, longest))
    working = [need.working for need in plan.needs]
    console.print(f"\nCounted in: working memory, {_gb(min(working))} to {_gb(max(working))} GB.")
    for reason in dict.fromkeys(plan.refused.values()):
        console.print(f"Left out: {reason}.")
    if memory is None:
        console.print("Give --device or --device-memory to see what fits, and which to choose.")
    elif plan.choice is not None:
        console.print(_choice(plan.choice, memory, context or limit))


def _table(plan: MemoryPlan, memory: int | None, longest: bool) -> Table:
    """A row for each quantisation and layout, a column for each KV dtype."""
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
        head = ("", "") if (quant, dtype) == above else (dtype if quant == "none" else quant, _gb(needs[0].weights))
        above = (quant, dtype)
        table.add_row(*head, layout, *(_cell(need, memory, longest) for need in needs))
    return table


def _cell(need: Need, memory: int | None, longest: bool) -> str:
    if longest:
        return f"{need.max_context:,}" if need.max_context else "-"
    return _gb(need.total) + ("" if memory is None else "  " if need.total <= memory else " x")


def _choice(need: Need, memory: int, wanted: int) -> str:
    """The options to build with, and why those."""
    c, reached = need.combination, need.max_context or 0
    reason = f"Loses least of all that hold {wanted:,} tokens" if reached >= wanted else "Reaches farthest"
    options = f"--quant {c.quant} --dtype {c.dtype} --kv-layout {c.kv_layout} --kv-dtype {c.kv_dtype}"
    parts = f"weights {_gb(need.weights)} + KV {_gb(need.kv)} + working {_gb(need.working)} = {_gb(need.total)}"
    return (
        f"Choose {options} --max-context {min(reached, wanted)}\n"
        f"{reason}; for {need.context:,} tokens {parts} of {_gb(memory)} GB."
    )


def _gb(size: int) -> str:
    """Decimal gigabytes, small ones to the megabyte."""
    return f"{size / 1e9:,.1f}" if size >= 10**10 else f"{size / 1e9:.3f}"
