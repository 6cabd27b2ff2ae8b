"""Own CPU kernels against ONNX Runtime's and the machine's read rate, per shape, interleaved in one run.

    python tests/benchmarks/cpu_kernels.py [--rounds 9] [--rows 1 4 8 512] [--block 128] [--shapes 2048x3072 ..]
    python tests/benchmarks/cpu_kernels.py --experts 16 [--shapes 2048x3072] [--threads 2]

A shape is K x N of a linear product, with --experts H x I of experts, of which a token takes one. Every engine takes
several matrices in turn, more than caches hold. With one thread times are of the processor, so that other work on the
machine shows less; with more they are of the clock. Numbers are medians over the rounds, with half of the range between
the quartiles. Rates count the bytes of the kernels' own tiles, for ONNX Runtime too, so that ratios are ratios of time.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from l4export.engine.cpu_weight_layout import CpuFormat

sys.path.append(str(Path(__file__).parents[1] / "support"))
import cpu_kernel_contenders as contenders
from cpu_kernel_library import kernel_library, pointer
from cpu_kernel_models import session

SHAPES = ("2048x3072", "2048x2048", "2048x8192", "4096x2048", "5120x7168", "5120x5120", "5120x16384", "8192x5120")
WORKING_SET = 320 << 20
MANY = 32
"""Rows from which on arithmetic is the limit, not memory."""

Call = Callable[[], object]


def runs(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], threads: int) -> Call:
    made = session(model, threads)
    return lambda: [made.run(None, feed) for feed in feeds]


def interleaved(calls: dict[str, Call], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each round, after one that is not measured."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for measured in range(-1, rounds):
        for name, call in calls.items():
            begin = clock()
            call()
            if measured >= 0:
                seconds[name].append(clock() - begin)
    return seconds


def linear_calls(shape: str, rows: int, options: argparse.Namespace) -> tuple[dict[str, Call], int, int]:
    """The contenders, the bytes of weights that a round takes, and its multiplications."""
    k, n = map(int, shape.split("x"))
    layout = CpuFormat(n, k, options.bits, options.block)
    size = layout.tiles * layout.tile_bytes
    count = -(-WORKING_SET // size) if rows <= MANY else 1
    feeds = [{"x": np.random.default_rng(1).standard_normal((rows, k)).astype(np.float32)}]
    models = {"own": contenders.own_linear(layout, count, "int8")}
    if options.float:
        models["float"] = contenders.own_linear(layout, count, "float")
    models["ORT"] = contenders.onnxruntime_linear(layout, count)
    return {name: runs(m, feeds, options.threads) for name, m in models.items()}, count * size, count * rows * n * k


def moe_calls(shape: str, rows: int, options: argparse.Namespace) -> tuple[dict[str, Call], int, int]:
    """The same of experts: a run for each expert where rows are few (all of them go there), else one run."""
    hidden, width = map(int, shape.split("x"))
    layouts = [CpuFormat(n, k, options.bits, options.block) for n, k in ((2 * width, hidden), (hidden, width))]
    rng, experts = np.random.default_rng(1), options.experts
    feeds = []
    for expert in range(experts if rows <= MANY else 1):
        logits = rng.standard_normal((rows, experts)).astype(np.float32)
        if rows <= MANY:
            logits[:, expert] += 100
        feeds.append({"x": rng.standard_normal((rows, hidden)).astype(np.float32), "logits": logits})
    models = {
        "own": contenders.own_moe(*layouts, experts),
        "ORT": contenders.onnxruntime_moe(*layouts, experts),
    }
    size = experts * sum(layout.tiles * layout.tile_bytes for layout in layouts)
    calls = {name: runs(model, feeds, options.threads) for name, model in models.items()}
    return calls, size, len(feeds) * rows * 3 * hidden * width


def shown(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:7.1f} ±{(high - low) / 2:5.1f}"


def measure(shape: str, rows: int, options: argparse.Namespace) -> None:
    calls, size, products = (moe_calls if options.experts else linear_calls)(shape, rows, options)
    memory = np.full(WORKING_SET, 1, np.uint8)  # zeros would be one page
    lines, library = ctypes.c_int64(memory.nbytes // 64), kernel_library()
    if options.threads == 1 and rows <= MANY:
        calls["read"] = lambda: library.l4cpu_read(pointer(memory), lines)
    seconds = interleaved(calls, options.rounds, time.process_time if options.threads == 1 else time.perf_counter)
    for name, times in seconds.items():
        work, unit = (products, "GMAC/s") if rows > MANY else (memory.nbytes if name == "read" else size, "GB/s")
        print(f"{shape:12} {rows:4} rows {name:6} {shown([work / t / 1e9 for t in times])} {unit}")
    ratio = statistics.median(a / b for a, b in zip(seconds["ORT"], seconds["own"], strict=True))
    print(f"{shape:12} {rows:4} rows own    {ratio:7.2f} x ORT", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 512])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--experts", type=int, default=0, help="experts of this number instead of linear products")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float", action="store_true", help="own kernels with float activations, too")
    options = parser.parse_args()
    for shape in options.shapes:
        for rows in options.rows:
            measure(shape, rows, options)


if __name__ == "__main__":
    main()
