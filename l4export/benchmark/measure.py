"""How fast an engine is, what it costs in memory, and how near decoding comes to the machine's own read bandwidth."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from l4export.benchmark.decode_weights import decode_weight_bytes
from l4export.benchmark.memory import forget_peak, process_memory, read_bandwidth
from l4export.engine.manifest import Manifest, load_manifest
from l4export.errors import InputError
from l4export.runtimes.arguments import a_path, shown
from l4export.runtimes.random_text import random_text

if TYPE_CHECKING:
    from l4export.benchmark.gpu import GpuReport
    from l4export.benchmark.images import ImageReport
    from l4export.runtimes.engine import Engine
    from l4export.runtimes.onnxruntime.execution import CudaExecution
    from l4export.runtimes.session import Session

__all__ = ["BenchReport", "bench"]

_WARM_UP_STEPS = 4
_TRACED_STEPS = 8


@dataclass(frozen=True)
class BenchReport:
    """The figures of one engine on this machine; one row of tokens, speeds and times are medians of `repeats`.

    Times are in seconds, sizes in bytes, bandwidths in bytes a second. `cold_first_token_seconds` runs from the
    beginning of loading to the first token of the first prompt: what is mapped and not yet read is read then.
    `first_token_seconds` is the same prompt on a loaded and warm engine. `resident_*` is the memory of the process:
    weights that are mapped from the files count when they have been touched, and the system may take them back;
    `private` is what it may not. They are None where the system does not report them.

    `decode_bandwidth_share` is `decode_tokens_per_second` x `decode_weight_bytes` / `read_bandwidth`; see
    `l4export.benchmark` for the last two. `threads`, `read_bandwidth` and the share are of this machine's CPU, and
    None where a GPU computes. `gpu` is of an `ort-cuda` engine on a GPU, and None elsewhere. `images` is None if none
    were asked for. They are measured after everything else, so other figures are the same with them.
    """

    engine: str
    provider: str
    precision: dict[str, str]
    threads: int | None
    prefill_tokens: int
    decode_tokens: int
    repeats: int
    load_seconds: float
    cold_first_token_seconds: float
    first_token_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    resident_loaded_bytes: int | None
    resident_steady_bytes: int | None
    resident_private_bytes: int | None
    resident_peak_bytes: int | None
    weight_bytes: int
    decode_weight_bytes: int
    read_bandwidth: float | None
    decode_bandwidth_share: float | None
    gpu: GpuReport | None = None
    images: ImageReport | None = None

    def to_json(self) -> str:
        """The report as a JSON document."""
        return json.dumps(dataclasses.asdict(self))


def bench(
    engine_path: str | os.PathLike[str],
    prefill: int = 512,
    decode: int = 64,
    repeats: int = 5,
    threads: int | None = None,
    on_step: Callable[[str], None] | None = None,
    images: int | None = None,
) -> BenchReport:
    """Load an engine, warm it up, and measure `repeats` times a prompt of `prefill` tokens and `decode` single ones.

    The tokens are random (seeded), so that experts are visited as a text would visit them: a greedy continuation may
    run in circles and find its few experts in the cache.

    Args:
        engine_path: The engine directory.
        prefill: Tokens of the prompt, fed in one call.
        decode: Tokens fed after it, one a call.
        repeats: Runs of both; the report has medians.
        threads: Threads of one call on a CPU; None means one a core.
        on_step: Called with a few words about what is done next.
        images: Also measure the vision tower, and a prompt of so many images before `prefill` tokens of text; None
            measures text alone.

    Raises:
        InputError: not an engine; a count below 1; prompt and continuation beyond the engine's context; images for an
            engine that sees none.
        EnvironmentLacks: onnxruntime is missing, or what else the engine's target needs.
    """
    path, say = a_path(engine_path, "engine_path"), on_step or (lambda _: None)
    manifest = load_manifest(path)
    _check(manifest, prefill=prefill, decode=decode, repeats=repeats, threads=threads, images=images)
    if images is not None:
        from l4export.benchmark.images import image_prompt, measure_images

        image_prompt(path, manifest, images, prefill)  # refused now; kept, it would count as memory of the engine
    engine, measured = _measure(path, prefill, decode, repeats, threads, say)
    bandwidth = None
    if engine.threads is not None:
        say("measuring the machine's read bandwidth")
        bandwidth = read_bandwidth(engine.threads)
    first_token = statistics.median(measured.first_token)
    speed = decode / statistics.median(measured.decoding)
    total, needed = _weight_bytes(engine)
    report = BenchReport(
        engine=str(path),
        provider=engine.provider,
        precision=engine.manifest.precision,
        threads=engine.threads,
        prefill_tokens=prefill,
        decode_tokens=decode,
        repeats=repeats,
        load_seconds=measured.load,
        cold_first_token_seconds=measured.cold_first_token,
        first_token_seconds=first_token,
        prefill_tokens_per_second=prefill / first_token,
        decode_tokens_per_second=speed,
        resident_loaded_bytes=measured.loaded_memory.get("VmRSS"),
        resident_steady_bytes=measured.steady_memory.get("VmRSS"),
        resident_private_bytes=measured.steady_memory.get("RssAnon"),
        resident_peak_bytes=measured.steady_memory.get("VmHWM"),
        weight_bytes=total,
        decode_weight_bytes=needed,
        read_bandwidth=bandwidth,
        decode_bandwidth_share=None if bandwidth is None else speed * needed / bandwidth,
    )
    device = getattr(engine, "device", None)
    if device is not None:
        report = dataclasses.replace(report, gpu=_on_gpu(device, path, report, measured.caches, say))
    if images is not None:
        shown = measure_images(engine, *image_prompt(path, manifest, images, prefill), repeats, say)
        report = dataclasses.replace(report, images=shown)
    return report


def _on_gpu(
    device: CudaExecution, path: Path, report: BenchReport, caches: int, say: Callable[[str], None]
) -> GpuReport:
    """Measure the GPU, and trace some steps if there is room to load the engine again."""
    from l4export.benchmark.gpu import gpu_report
    from l4export.benchmark.step_profile import profile_steps

    say("measuring the GPU's bandwidth")
    gpu = gpu_report(device, report.weight_bytes, caches, report.decode_tokens_per_second * report.decode_weight_bytes)
    if gpu.used_bytes > device.card.cuda.memory()[0]:
        return gpu
    say("tracing some steps")
    step = profile_steps(path, load_manifest(path), report.prefill_tokens, _TRACED_STEPS, None)
    return dataclasses.replace(gpu, step=step)


def _check(manifest: Manifest, **counts: int | None) -> None:
    for name, count in counts.items():
        if name in ("threads", "images") and count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise InputError(f"--{name} {shown(count)}: give at least 1")
    prefill, decode = counts["prefill"] or 0, counts["decode"] or 0
    if prefill + decode > manifest.max_context:
        raise InputError(
            f"--prefill {prefill} --decode {decode}: together more than the engine's max_context of "
            f"{manifest.max_context}; ask for less or build with a larger --max-context"
        )


@dataclass(frozen=True)
class _Measured:
    """Times in seconds, `first_token` and `decoding` of every run; memory as `process_memory` gives it; cache bytes."""

    load: float
    cold_first_token: float
    first_token: list[float]
    decoding: list[float]
    loaded_memory: dict[str, int]
    steady_memory: dict[str, int]
    caches: int


def _measure(
    path: Path, prefill: int, decode: int, repeats: int, threads: int | None, say: Callable[[str], None]
) -> tuple[Engine, _Measured]:
    """Load, warm up and run. Nothing else is imported or computed meanwhile, because it would count as memory."""
    from l4export import runtimes

    forget_peak()
    say("loading the engine")
    began = time.perf_counter()
    engine = runtimes.load(path, threads)
    load = time.perf_counter() - began
    loaded_memory = process_memory()
    say("warming up")
    ids = random_text(engine.manifest, prefill + decode)
    session = engine.session(capacity=len(ids))
    session.append(ids[:prefill], last_only=True)
    cold_first_token = time.perf_counter() - began
    for at in range(prefill, prefill + min(decode, _WARM_UP_STEPS)):
        session.append(ids[at : at + 1], last_only=True)
    first_token, decoding = [], []
    for count in range(1, repeats + 1):
        say(f"measuring, {count} of {repeats}")
        first, rest = _run(session, ids, prefill)
        first_token.append(first)
        decoding.append(rest)
    return engine, _Measured(
        load, cold_first_token, first_token, decoding, loaded_memory, process_memory(), session.kv_bytes
    )


def _run(session: Session, ids: NDArray[np.int64], prefill: int) -> tuple[float, float]:
    """Seconds until the first token of the prompt ids[:prefill] is known, and of feeding the rest one by one."""
    session.reset()
    began = time.perf_counter()
    session.append(ids[:prefill], last_only=True).argmax()
    first = time.perf_counter()
    for at in range(prefill, len(ids)):
        session.append(ids[at : at + 1], last_only=True).argmax()
    return first - began, time.perf_counter() - first


def _weight_bytes(engine: Engine) -> tuple[int, int]:
    """Bytes of all weights, and of those that a decode step must read, computed from the graph alone."""
    from l4export.inspection.graph_file import load_graph

    model = load_graph(engine.directory, engine.manifest)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None), decode_weight_bytes(model, engine.config)
