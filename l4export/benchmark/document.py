"""The report of `l4export bench` as figures, and as a document, from which files are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from l4export.benchmark.gpu import GpuReport
from l4export.benchmark.images import ImageReport
from l4export.benchmark.measure import BenchReport
from l4export.reports.document import Document
from l4export.reports.figure import Figure
from l4export.reports.identity import Identity
from l4export.reports.sections import Bar, Bars, Table
from l4export.reports.verdict import finite

__all__ = ["bench_document", "facts_of", "figures_of"]


def facts_of(report: BenchReport) -> tuple[tuple[str, str], ...]:
    """What is no number, as (label, text): what executed it, and how."""
    gpu = report.gpu
    runs = f"{report.repeats} run{'s' if report.repeats > 1 else ''}"
    threads = f"{report.threads} thread{'s' if report.threads != 1 else ''}"
    facts = [("measured on", f"{report.provider if report.threads is None else threads}, {runs}")]
    if gpu is not None:
        facts += [
            ("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, driver for CUDA {gpu.cuda}"),
            ("decoding", gpu.steps),
        ]
        if gpu.step is not None:
            counts = ", ".join(f"{count} on {name}" for name, count in gpu.step.operators.items())
            facts.append(("traced step: operators", counts))
    return tuple(facts)


def figures_of(report: BenchReport) -> tuple[Figure, ...]:
    """All that was measured, and what follows from it. What the system does not report is left out."""
    weights, found = report.decode_weight_bytes, list(_of_text(report))
    if report.read_bandwidth is not None:
        found += _of_bandwidth(
            "CPU", "read bandwidth of this machine", "read_bandwidth", report.read_bandwidth, weights
        )
        found += [_share("CPU", report.decode_bandwidth_share)]
    if report.gpu is not None:
        found += _of_gpu(report.gpu, weights)
    if report.images is not None:
        found += _of_images(report.images)
    return tuple(found)


def _of_text(report: BenchReport) -> Iterator[Figure]:
    prefill, decode = report.prefill_tokens, report.decode_tokens
    speed, memory, start = "speed", "memory", "start"
    tokens = "tokens/s"
    yield Figure(
        speed,
        "prefill_tokens_per_second",
        f"prefill of {prefill} tokens",
        report.prefill_tokens_per_second,
        ".1f",
        tokens,
    )
    yield Figure(
        speed, "decode_tokens_per_second", f"decode of {decode} tokens", report.decode_tokens_per_second, ".2f", tokens
    )
    yield Figure(speed, "first_token_seconds", "first token", report.first_token_seconds, ".3f", "s")
    yield Figure(start, "load_seconds", "load", report.load_seconds, ".2f", "s")
    yield Figure(
        start, "cold_first_token_seconds", "load and first token, cold", report.cold_first_token_seconds, ".2f", "s"
    )
    for name, label in _MEMORY:
        yield Figure(memory, name, label, getattr(report, name), unit="bytes")


_MEMORY = (
    ("resident_loaded_bytes", "memory after loading"),
    ("resident_steady_bytes", "memory in use"),
    ("resident_private_bytes", "memory not mapped from the engine's files"),
    ("resident_peak_bytes", "peak memory"),
    ("weight_bytes", "weights"),
    ("decode_weight_bytes", "weights read for a token"),
)
_GPU_MEMORY = (
    ("used_bytes", "GPU memory, peak"),
    ("memory_bytes", "GPU memory, all"),
    ("weight_bytes", "GPU memory, weights"),
    ("cache_bytes", "GPU memory, caches"),
    ("working_bytes", "GPU memory, working"),
)


def _of_bandwidth(phase: str, label: str, name: str, bandwidth: float, weights: int) -> Iterator[Figure]:
    yield Figure(phase, name, label, bandwidth, unit="bytes/s")
    yield Figure(phase, "decode_limit", "decode at that bandwidth", bandwidth / weights, ".2f", "tokens/s")


def _share(phase: str, share: float | None) -> Figure:
    return Figure(phase, "decode_bandwidth_share", "share of it that decode reaches", share, unit="share")


def _of_gpu(gpu: GpuReport, weights: int) -> Iterator[Figure]:
    yield from _of_bandwidth("GPU", "copy on the GPU, read + written", "copy_bandwidth", gpu.copy_bandwidth, weights)
    yield _share("GPU", gpu.decode_bandwidth_share)
    for name, label in _GPU_MEMORY:
        yield Figure("GPU", f"gpu_{name}", label, getattr(gpu, name), unit="bytes")
    if (step := gpu.step) is not None:
        yield Figure("traced step", "kernels", "traced step: kernels", step.kernels, "d")
        yield Figure("traced step", "gpu_seconds", "traced step: kernels, added", step.gpu_seconds * 1e3, ".2f", "ms")
        yield Figure("traced step", "host_seconds", "traced step: on the host", step.host_seconds * 1e3, ".2f", "ms")


def _of_images(images: ImageReport) -> Iterator[Figure]:
    for of in images.tower:
        what = f"vision tower, {of.tiles} tile{'s' if of.tiles > 1 else ''}"
        yield Figure(what, "tower_seconds", what, of.seconds, ".3f", "s")
        yield Figure(what, "features_per_second", f"{what}, features", of.features_per_second, ".1f", "features/s")
    many = "s" if images.count > 1 else ""
    shown = f"first token, {images.count} image{many} of {images.tiles} tiles in {images.prompt_tokens} tokens"
    yield Figure("images", "first_token_seconds", shown, images.first_token_seconds, ".3f", "s")
    yield Figure(
        "images",
        "seen_first_token_seconds",
        "first token, images that were seen before",
        images.seen_first_token_seconds,
        ".3f",
        "s",
    )
    yield Figure(
        "images",
        "text_first_token_seconds",
        "first token, as many tokens of text alone",
        images.text_first_token_seconds,
        ".3f",
        "s",
    )


def bench_document(report: BenchReport, identity: Identity) -> Document:
    """The document of a measurement, of which nothing is demanded."""
    figures = figures_of(report)
    return Document(
        kind="bench",
        verdict="measured",
        why=(),
        exit_code=0,
        identity=dataclasses.replace(identity, provider=report.provider, seed=0),
        figures=figures,
        details=finite(dataclasses.asdict(report)),
        sections=(
            Table("How it was measured", ("", ""), facts_of(report)),
            Bars("Memory", tuple(_bars(figure for figure in figures if figure.unit == "bytes")), "bytes"),
        ),
    )


def _bars(figures: Iterable[Figure]) -> Iterator[Bar]:
    return (Bar(each.label, each.value, each.shown) for each in figures if each.value is not None)
