"""How fast an engine is, what it costs in memory, and how near decoding comes to the machine's own read bandwidth."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest, load_manifest
from l4export.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from l4export.model.config import ModelConfig
    from l4export.runtimes.engine import Engine
    from l4export.runtimes.session import Session

__all__ = ["BenchReport", "bench_engine", "decode_weight_bytes", "read_bandwidth"]

_WARM_UP_STEPS = 4
_BANDWIDTH_ROUNDS = 12
_BANDWIDTH_BYTES = 512 << 20
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class BenchReport:
    """The figures of one engine on this machine; one row of tokens, speeds and times are medians of `repeats`.

    Times are in seconds, sizes in bytes. `cold_first_token_seconds` runs from the beginning of loading to the first
    token of the first prompt: what is mapped and not yet read is read then. `first_token_seconds` is the same prompt
    on a loaded and warm engine. `resident_*` is the memory of the process: weights that are mapped from the files count
    when they have been touched, and the system may take them back; `private` is what it may not. None where the system
    does not tell.

    `decode_bandwidth_share` is `decode_tokens_per_second` x `decode_weight_bytes` / `read_bandwidth`; see
    `decode_weight_bytes` and `read_bandwidth` of this module for the last two. `threads`, `read_bandwidth` and the
    share are of this machine's CPU, and None where a GPU computes.
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

    def to_json(self) -> str:
        """The report as a JSON document."""
        return json.dumps(dataclasses.asdict(self))


def bench_engine(
    path: Path,
    prefill: int = 512,
    decode: int = 64,
    repeats: int = 5,
    threads: int | None = None,
    on_step: Callable[[str], None] | None = None,
) -> BenchReport:
    """Load an engine, warm it up, and measure `repeats` times a prompt of `prefill` tokens and `decode` single ones.

    Tokens are random (seeded), so that experts are visited as a text would: a greedy continuation may run in circles
    and find its few experts in the cache. `threads` None means one a core.

    Raises:
        InputError: not an engine; a count below 1; prompt and continuation beyond the engine's context.
        EnvironmentLacks: onnxruntime is missing.
    """
    say = on_step or (lambda _: None)
    manifest = load_manifest(path)
    _check(manifest, prefill=prefill, decode=decode, repeats=repeats, threads=threads)
    ids = np.random.default_rng(0).integers(0, manifest.model.vocab_size, prefill + decode)
    engine, measured = _measure(path, threads, (ids[:prefill], ids[prefill:]), repeats, say)
    bandwidth = None
    if engine.threads is not None:
        say("measuring the machine's read bandwidth")
        bandwidth = read_bandwidth(engine.threads)
    first_token, speed = statistics.median(measured.first_token), decode / statistics.median(measured.decoding)
    total, needed = _weight_bytes(engine)
    return BenchReport(
        engine=str(path),
        provider=engine.provider,
        precision=manifest.precision,
        threads=engine.threads,
        prefill_tokens=prefill,
        decode_tokens=decode,
        repeats=repeats,
        load_seconds=measured.load,
        cold_first_token_seconds=measured.cold_first_token,
        first_token_seconds=first_token,
        prefill_tokens_per_second=prefill / first_token,
        decode_tokens_per_second=speed,
        resident_loaded_bytes=measured.loaded.get("VmRSS"),
        resident_steady_bytes=measured.steady.get("VmRSS"),
        resident_private_bytes=measured.steady.get("RssAnon"),
        resident_peak_bytes=measured.steady.get("VmHWM"),
        weight_bytes=total,
        decode_weight_bytes=needed,
        read_bandwidth=bandwidth,
        decode_bandwidth_share=None if bandwidth is None else speed * needed / bandwidth,
    )


@dataclass(frozen=True)
class _Measured:
    """Seconds: of loading, until the first token came, and of each repetition; `_memory` once loaded and at the end."""

    load: float
    cold_first_token: float
    first_token: list[float]
    decoding: list[float]
    loaded: dict[str, int]
    steady: dict[str, int]


def _measure(
    path: Path,
    threads: int | None,
    tokens: tuple[NDArray[np.int64], NDArray[np.int64]],
    repeats: int,
    say: Callable[[str], None],
) -> tuple[Engine, _Measured]:
    """An engine's life: loaded, warmed up and run over `tokens`, a prompt and what follows it one by one."""
    from l4export import runtimes

    prompt, following = tokens
    _forget_peak()
    say("loading the engine")
    began = time.perf_counter()
    engine = runtimes.load(path, threads)
    load = time.perf_counter() - began
    loaded = _memory()
    say("warming up")
    session = engine.session(capacity=len(prompt) + len(following))
    _prefill(session, prompt)
    cold = time.perf_counter() - began
    _decode(session, following[:_WARM_UP_STEPS])
    first_token, decoding = [], []
    for count in range(1, repeats + 1):
        say(f"measuring, {count} of {repeats}")
        first_token.append(_prefill(session, prompt))
        decoding.append(_decode(session, following))
    return engine, _Measured(load, cold, first_token, decoding, loaded, steady=_memory())


def _prefill(session: Session, prompt: NDArray[np.int64]) -> float:
    """Seconds until the first token after a prompt is known; the session is emptied before."""
    session.reset()
    began = time.perf_counter()
    session.append(prompt, last_only=True).argmax()
    return time.perf_counter() - began


def _decode(session: Session, ids: NDArray[np.int64]) -> float:
    """Seconds of feeding tokens one by one."""
    began = time.perf_counter()
    for at in range(len(ids)):
        session.append(ids[at : at + 1], last_only=True).argmax()
    return time.perf_counter() - began


def decode_weight_bytes(model: ir.Model, config: ModelConfig) -> int:
    """Bytes of weights that one decode step of one row must read, as they are stored.

    Every initializer counts in full, with two exceptions: of experts (what `MoE`, `QMoE` or an `If` read) only the
    chosen `num_experts_per_tok / num_local_experts`, and of tables that are looked up (`Gather`,
    `GatherBlockQuantized`, the angles of `GroupQueryAttention`) one row. A weight with several readers counts once,
    by the one that needs most: a tied embedding in full. What is computed from initializers alone
    (`DequantizeLinear`) is looked through. The KV cache and activations do not count: they are megabytes where the
    weights are gigabytes.
    """
    weights = [(value, value.const_value) for value in model.graph.initializers.values()]
    return sum(int(tensor.nbytes * _share(value, config)) for value, tensor in weights if tensor is not None)


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads together read from memory: the best of several passes over a large buffer.

    The buffer is at least 512 MiB and twice the last-level cache. NumPy's bitwise or waits for nothing but memory (a
    sum of floats is a tenth slower) and holds no lock meanwhile. The best is taken, as anything else that runs on the
    machine can only lower it.
    """
    size = max(_BANDWIDTH_BYTES, 2 * _cache_bytes()) // threads
    parts = [np.ones(size // 8, dtype=np.uint64) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as workers:
        for _ in range(_BANDWIDTH_ROUNDS):
            began = time.perf_counter()
            list(workers.map(np.bitwise_or.reduce, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - began))
    return best


def _check(manifest: Manifest, **counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"--{name} {count}: give at least 1")
    prefill, decode = counts["prefill"] or 0, counts["decode"] or 0
    if prefill + decode > manifest.max_context:
        raise InputError(
            f"--prefill {prefill} --decode {decode}: together more than the engine's max_context of "
            f"{manifest.max_context}; ask for less or build with a larger --max-context"
        )


def _weight_bytes(engine: Engine) -> tuple[int, int]:
    """Bytes of all weights, and of those that a decode step must read; from the graph alone."""
    import onnx_ir as ir

    model = ir.load(engine.directory / "decoder.onnx")
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None), decode_weight_bytes(model, engine.config)


_EXPERTS = frozenset({"MoE", "QMoE"})
# Operator -> the inputs of which one token needs one row.
_TABLES = {"Gather": {0}, "GatherBlockQuantized": {0, 2, 3}, "GroupQueryAttention": {7, 8}}


def _share(value: ir.Value, config: ModelConfig) -> Fraction:
    """The part of an initializer, or of what is computed from initializers alone, that a decode step needs."""
    return max(
        (share for use in value.uses() for share in _shares(value, use.node, use.idx, config)), default=Fraction(0)
    )


def _shares(value: ir.Value, node: ir.Node, index: int, config: ModelConfig) -> Iterator[Fraction]:
    """What `node` needs of `value`, its input number `index`."""
    if node.op_type in _EXPERTS or node.graph is not value.graph:
        yield Fraction(config.num_experts_per_tok, config.num_local_experts)
    elif index in _TABLES.get(node.op_type, ()) and value.shape:
        yield Fraction(1, max(1, value.shape.numpy()[0]))
    elif node.inputs and all(operand is None or _is_constant(operand) for operand in node.inputs):
        yield from (_share(output, config) for output in node.outputs)
    else:
        yield Fraction(1)


def _is_constant(value: ir.Value) -> bool:
    if value.is_graph_input():
        return False
    if (node := value.producer()) is None:
        return value.is_initializer()
    return all(operand is None or _is_constant(operand) for operand in node.inputs)


def _memory() -> dict[str, int]:
    """VmRSS, RssAnon, VmHWM (the peak) and more of this process, in bytes; empty where there is no /proc."""
    try:
        lines = [line.split() for line in _STATUS.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}


def _forget_peak() -> None:
    """Let VmHWM start from here, where the system allows it; else it is the peak of the whole process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _cache_bytes() -> int:
    """The last-level cache; 0 where the system does not tell."""
    sizes = [0]
    for file in _CACHE.glob("index*/size"):
        with suppress(OSError, ValueError):
            sizes.append(int(file.read_text().strip().removesuffix("K")) << 10)
    return max(sizes)
