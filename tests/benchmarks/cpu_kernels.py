"""Own CPU kernels against ONNX Runtime's and the machine's read rate, per shape, interleaved in one run.

    python tests/benchmarks/cpu_kernels.py [--rounds 9] [--rows 1 4 8 512] [--block 128] [--shapes 2048x3072 ..]

Every engine multiplies by several matrices in turn, more than caches hold, in one thread; times are of the processor,
so that other work on the machine shows less. Numbers are medians over the rounds, with half of the range between the
quartiles. Rates count the bytes of the kernels' own tiles, for ONNX Runtime too, so that their ratio is one of time.
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
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from l4export.engine.cpu_weight_layout import CpuFormat

sys.path.append(str(Path(__file__).parents[1] / "support"))
from cpu_kernel_library import kernel_library, pointer
from cpu_kernel_models import DOMAIN, session

SHAPES = ("2048x3072", "2048x2048", "2048x8192", "4096x2048", "5120x7168", "5120x5120", "5120x16384", "8192x5120")
WORKING_SET = 320 << 20
Measured = dict[str, list[float]]


def own_nodes(layout: CpuFormat, count: int, activations: str) -> onnx.ModelProto:
    """A model that multiplies x by `count` matrices of random tiles."""
    rng = np.random.default_rng(0)
    coding = {"bits": layout.bits, "block_size": layout.block_size, "zero_points": 0, "activations": activations}
    nodes, weights = [], []
    for i in range(count):
        tiles = np.frombuffer(rng.bytes(layout.tiles * layout.tile_bytes), np.uint8).reshape(
            layout.tiles, layout.blocks, -1
        )
        tiles = tiles.copy()
        tiles[..., :64].view(np.float16)[...] = 0.01
        weights.append(numpy_helper.from_array(tiles.reshape(layout.shape), f"w{i}"))
        nodes.append(
            helper.make_node(
                "Linear", ["x", f"w{i}"], [f"y{i}"], domain=DOMAIN, N=layout.rows, K=layout.columns, **coding
            )
        )
    return model(nodes, weights)


def onnxruntime_nodes(layout: CpuFormat, count: int, accuracy_level: int) -> onnx.ModelProto:
    """The same with MatMulNBits; it reads scales in float32."""
    rng = np.random.default_rng(0)
    n, k, block = layout.rows, layout.columns, layout.block_size
    sizes = {"N": n, "K": k, "bits": layout.bits, "block_size": block, "accuracy_level": accuracy_level}
    nodes, weights = [], []
    for i in range(count):
        codes = np.frombuffer(rng.bytes(n * k * layout.bits // 8), np.uint8).reshape(n, k // block, -1)
        weights.append(numpy_helper.from_array(codes, f"w{i}"))
        weights.append(numpy_helper.from_array(np.full((n, k // block), 0.01, np.float32), f"s{i}"))
        nodes.append(
            helper.make_node("MatMulNBits", ["x", f"w{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft", **sizes)
        )
    return model(nodes, weights)


def model(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", *(n.output[0] for n in nodes))
    ]
    graph = helper.make_graph(nodes, "kernels", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 20), (DOMAIN, 1), ("com.microsoft", 1))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run_of(made: onnxruntime.InferenceSession, rows: int, columns: int) -> Callable[[], object]:
    x = np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)
    return lambda: made.run(None, {"x": x})


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int) -> Measured:
    """Seconds of processor time of each round."""
    seconds: Measured = {name: [] for name in contenders}
    for measured in range(-1, rounds):
        for name, call in contenders.items():
            begin = time.process_time()
            call()
            if measured >= 0:
                seconds[name].append(time.process_time() - begin)
    return seconds


def shown(values: list[float], form: str = "{:7.1f}") -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{form.format(middle)} ±{(high - low) / 2:4.1f}"


def measure(shape: str, options: argparse.Namespace) -> None:
    k, n = map(int, shape.split("x"))
    layout = CpuFormat(n, k, options.bits, options.block)
    size = layout.tiles * layout.tile_bytes
    few = max(1, -(-WORKING_SET // size))
    memory = np.full(few * size, 1, np.uint8)  # zeros would be one page
    library = kernel_library()
    for rows in options.rows:
        count = few if rows <= 32 else 1
        contenders: dict[str, Callable[[], object]] = {
            "own": run_of(session(own_nodes(layout, count, "int8")), rows, k),
            "float": run_of(session(own_nodes(layout, count, "float")), rows, k),
            "ORT": run_of(session(onnxruntime_nodes(layout, count, 4)), rows, k),
        }
        if not options.float:
            del contenders["float"]
        if rows == min(options.rows):
            contenders["read"] = lambda: library.l4cpu_read(pointer(memory), ctypes.c_int64(memory.nbytes // 64))
        seconds = interleaved(contenders, options.rounds)
        ratio = statistics.median(a / b for a, b in zip(seconds["ORT"], seconds["own"], strict=True))
        for name, times in seconds.items():
            if rows <= 32:
                rates = [(memory.nbytes if name == "read" else count * size) / t / 1e9 for t in times]
                unit = "GB/s"
            else:
                rates, unit = [rows * n * k * count / t / 1e9 for t in times], "GMAC/s"
            print(f"{shape:12} {rows:4} rows {name:6} {shown(rates)} {unit}")
        print(f"{shape:12} {rows:4} rows own {ratio:.2f} x ORT", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 512])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--float", action="store_true", help="own kernels with float activations, too")
    options = parser.parse_args()
    for shape in options.shapes:
        measure(shape, options)


if __name__ == "__main__":
    main()
