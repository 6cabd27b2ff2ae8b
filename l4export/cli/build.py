"""`l4export build`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from l4export.build import BuildOptions, BuildPlan

__all__ = ["command"]


@click.command("build")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", "engine", required=True, type=click.Path(path_type=Path), help="Engine directory.")
@click.option("--target", type=click.Choice(["ort-cpu"]), default="ort-cpu", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True, help="Float type."
)
@click.option(
    "--kv-layout",
    type=click.Choice(["concat", "static"]),
    default="static",
    show_default=True,
    help="KV cache: buffers of --max-context updated in place, or tensors that grow.",
)
@click.option("--max-context", type=int, help="Longest sequence in tokens.  [default: the model's, at most 8192]")
@click.option("--jobs", type=int, help="Blocks of weights in flight.  [default: one a core]")
@click.option("--force", is_flag=True, help="Replace an engine that is already there.")
@click.option("--dump-ir", type=click.Path(path_type=Path), help="Write the graph after each pass into this directory.")
@click.option("--dry-run", is_flag=True, help="Plan only: say what would be written.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    checkpoint: Path,
    engine: Path,
    target: str,
    dtype: str,
    kv_layout: str,
    max_context: int | None,
    jobs: int | None,
    force: bool,
    dump_ir: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build an engine directory from the Llama 4 CHECKPOINT directory."""
    from l4export.build import BuildOptions, build, plan_build
    from l4export.engine_directory import EngineDirectory

    options = BuildOptions(target, dtype, kv_layout, max_context, jobs, force, dump_ir)
    if dry_run:
        EngineDirectory(engine, replace=force).check()
        _show_plan(plan_build(checkpoint, options), engine, as_json)
        return
    started = time.monotonic()
    with _progress(quiet=as_json) as advance:
        manifest = build(checkpoint, engine, options, advance)
    seconds = time.monotonic() - started
    size = sum(record.bytes for record in manifest.files.values())
    if as_json:
        summary = {"engine": str(engine), "files": len(manifest.files), "bytes": size, "seconds": round(seconds, 3)}
        click.echo(json.dumps({**summary, "max_context": manifest.max_context, "passes": list(manifest.passes)}))
        return
    click.echo(f"{engine}: {size / 1e9:.3f} GB in {len(manifest.files)} files, {seconds:.1f} s ({_described(options)})")


def _show_plan(planned: BuildPlan, engine: Path, as_json: bool) -> None:
    files = planned.data_files
    summary = {
        "engine": str(engine),
        "files": files,
        "bytes": sum(files.values()),
        "max_context": planned.max_context,
        "nodes": len(planned.model.graph),
        "passes": list(planned.passes),
    }
    if as_json:
        click.echo(json.dumps(summary))
        return
    click.echo(f"{engine}: would hold {sum(files.values()) / 1e9:.3f} GB of weights ({_described(planned.options)})")
    for name, size in files.items():
        click.echo(f"  {name}  {size:,} bytes")
    click.echo(f"  passes: {', '.join(planned.passes)}; {summary['nodes']} nodes; context {planned.max_context}")


def _described(options: BuildOptions) -> str:
    return f"{options.target}, {options.dtype}, KV {options.kv_layout}"


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar with bytes, rate and time left, on standard error; where that is no terminal, a line every ten seconds."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("weights", total=None)
        yield lambda written, total: bar.update(task, completed=written, total=total)


def _lines(interval: float = 10.0) -> Callable[[int, int], None]:
    started = last = time.monotonic()

    def advance(written: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= interval:
            last = now
            rate = written / (now - started)
            left = (total - written) / rate
            done = f"{written / 1e9:.2f} of {total / 1e9:.2f} GB"
            click.echo(f"{done}, {rate / 1e9:.2f} GB/s, {left:.0f} s left", err=True)

    return advance
