"""`l4export bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from l4export.benchmark.gpu import GpuReport
    from l4export.benchmark.images import ImageReport
    from l4export.benchmark.measure import BenchReport

__all__ = ["command"]


@click.command("bench")
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    engine: Path, prefill: int, decode: int, repeats: int, images: int | None, threads: int | None, as_json: bool
) -> None:
    """Measure ENGINE: speed, time to first token, loading, memory, and use of the memory bandwidth.

    The engine runs one row of random tokens, after a warm-up. Decoding cannot be faster than the machine's read
    bandwidth, which is measured with the same number of threads, divided by the bytes of weights that one token reads:
    all weights, but only the chosen experts and one row of the embedding.
    """
    from rich.console import Console

    from l4export.benchmark.measure import bench

    with Console(stderr=True).status("") as status:
        report = bench(engine, prefill, decode, repeats, threads, status.update, images)
    if as_json:
        click.echo(report.to_json())
    else:
        _show(report)


def _show(report: BenchReport) -> None:
    from rich.console import Console
    from rich.table import Table

    where = report.provider if report.threads is None else _count(report.threads, "thread")
    runs = f"{where}, {_count(report.repeats, 'run')}"
    table = Table(title=f"{report.engine}: {runs}", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    rows = [
        (f"prefill of {report.prefill_tokens} tokens", f"{report.prefill_tokens_per_second:.1f} tokens/s"),
        (f"decode of {report.decode_tokens} tokens", f"{report.decode_tokens_per_second:.2f} tokens/s"),
        ("first token", f"{report.first_token_seconds:.3f} s"),
        ("load", f"{report.load_seconds:.2f} s"),
        ("load and first token, cold", f"{report.cold_first_token_seconds:.2f} s"),
        ("memory after loading", _gigabytes(report.resident_loaded_bytes)),
        ("memory in use", _gigabytes(report.resident_steady_bytes)),
        ("... not mapped from the engine's files", _gigabytes(report.resident_private_bytes)),
        ("peak memory", _gigabytes(report.resident_peak_bytes)),
        ("weights", _gigabytes(report.weight_bytes)),
        ("weights read for a token", _gigabytes(report.decode_weight_bytes)),
    ]
    if report.read_bandwidth is not None:
        rows += [
            ("read bandwidth of this machine", f"{report.read_bandwidth / 1e9:.1f} GB/s"),
            ("decode at that bandwidth", f"{report.read_bandwidth / report.decode_weight_bytes:.2f} tokens/s"),
            ("share of it that decode reaches", f"{report.decode_bandwidth_share:.0%}"),
        ]
    if report.gpu is not None:
        rows += _gpu_rows(report.gpu, report.decode_weight_bytes)
    if report.images is not None:
        rows += _image_rows(report.images)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _image_rows(images: ImageReport) -> list[tuple[str, str]]:
    tower = [
        (f"vision tower, {_count(of.tiles, 'tile')}", f"{of.seconds:.3f} s, {of.features_per_second:.1f} features/s")
        for of in images.tower
    ]
    shown, size = _count(images.count, "image"), _count(images.tiles, "tile")
    return [
        *tower,
        (f"first token, {shown} of {size} in {images.prompt_tokens} tokens", f"{images.first_token_seconds:.3f} s"),
        ("... images that were seen before", f"{images.seen_first_token_seconds:.3f} s"),
        ("... as many tokens of text alone", f"{images.text_first_token_seconds:.3f} s"),
    ]


def _gpu_rows(gpu: GpuReport, decode_weight_bytes: int) -> list[tuple[str, str]]:
    rows = [
        ("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, driver for CUDA {gpu.cuda}"),
        ("decoding", gpu.steps),
        ("copy on the GPU, read + written", f"{gpu.copy_bandwidth / 1e9:.1f} GB/s"),
        ("decode at that bandwidth", f"{gpu.copy_bandwidth / decode_weight_bytes:.2f} tokens/s"),
        ("share of it that decode reaches", f"{gpu.decode_bandwidth_share:.0%}"),
        ("GPU memory, peak", f"{_gigabytes(gpu.used_bytes)} of {_gigabytes(gpu.memory_bytes)}"),
        ("... weights", _gigabytes(gpu.weight_bytes)),
        ("... caches", _gigabytes(gpu.cache_bytes)),
        ("... working", _gigabytes(gpu.working_bytes)),
    ]
    if (step := gpu.step) is not None:
        rows += [
            ("traced step: operators", ", ".join(f"{count} on {name}" for name, count in step.operators.items())),
            ("traced step: kernels", f"{step.kernels} in {step.gpu_seconds * 1e3:.2f} ms"),
            ("traced step: on the host", f"{step.host_seconds * 1e3:.2f} ms"),
        ]
    return rows


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _gigabytes(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 1e9:.3f} GB" if size >= 10**8 else f"{size / 1e6:.2f} MB"
