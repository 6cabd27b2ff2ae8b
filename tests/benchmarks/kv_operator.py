"""One decode step of one layer's attention by what its cache is stored as, and what else could be done for float16.

    python tests/benchmarks/kv_operator.py [--context 8192] [--heads 16 4] [--head-dim 128] [--threads N] [--steps 40]

Activations are float32 throughout. Caches are bound once and updated in place.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from l4export.graph.builder import GraphBuilder

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
Values = list[ir.Value]
Form = Callable[[GraphBuilder, Values, Values, Values, tuple[int, int, int]], Values]


def fused(b: GraphBuilder, x: Values, caches: Values, lengths: Values, sizes: tuple[int, int, int]) -> Values:
    """The operator as it is."""
    return list(_gqa(b, [*x, *caches, *lengths], sizes))


def half(b: GraphBuilder, x: Values, caches: Values, lengths: Values, sizes: tuple[int, int, int]) -> Values:
    """Queries, keys, values and results cast: `passes.CastKVCache`."""
    y, *present = _gqa(b, [*(_cast(b, v, HALF) for v in x), *caches, *lengths], sizes)
    return [_cast(b, y, FLOAT), *present]


def casts_of_caches(b: GraphBuilder, x: Values, caches: Values, lengths: Values, sizes: tuple[int, int, int]) -> Values:
    """The caches cast to float32 and back."""
    y, *present = _gqa(b, [*x, *(_cast(b, v, FLOAT) for v in caches), *lengths], sizes)
    return [y, *(_cast(b, v, HALF) for v in present)]


def scattered(b: GraphBuilder, x: Values, caches: Values, lengths: Values, sizes: tuple[int, int, int]) -> Values:
    """Standard operators: new entries scattered into the cache, those in use cast for `Attention`."""
    heads, kv_heads, width = sizes
    total = b.op("Unsqueeze", b.op("Cast", lengths[1], to=7), b.constant([0], "first"))
    past = b.op("Cast", lengths[0], to=7)
    q, k, v = (
        b.op("Transpose", b.op("Reshape", value, b.constant([0, 0, count, width], "heads")), perm=[0, 2, 1, 3])
        for value, count in zip(x, (heads, kv_heads, kv_heads), strict=True)
    )
    present = [
        b.op("TensorScatter", cache, _cast(b, new, HALF), past, axis=2)
        for cache, new in zip(caches, (k, v), strict=True)
    ]
    used = [b.op("Slice", p, b.constant([0], "begin"), total, b.constant([2], "axis")) for p in present]
    y = b.op("Attention", q, *(_cast(b, part, FLOAT) for part in used))
    tokens = b.op("Transpose", y, perm=[0, 2, 1, 3])
    return [b.op("Reshape", tokens, b.constant([0, 0, heads * width], "joined")), *present]


FORMS: dict[str, tuple[ir.DataType, int, Form]] = {
    "fp32": (FLOAT, 32, fused),
    "fp16, attention in float16": (HALF, 16, half),
    "fp16, caches cast to float32 and back": (HALF, 16, casts_of_caches),
    "fp16, scattered, cast for Attention": (HALF, 16, scattered),
    "int8": (ir.DataType.INT8, 8, fused),
    "int4": (ir.DataType.UINT8, 4, fused),
}


def _cast(b: GraphBuilder, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return b.op("Cast", value, to=int(dtype))


def _gqa(b: GraphBuilder, inputs: Values, sizes: tuple[int, int, int]) -> Values:
    heads, kv_heads, width = sizes
    bits = {ir.DataType.INT8: 8, ir.DataType.UINT8: 4}.get(inputs[3].dtype or FLOAT)
    scale = b.constant(np.full((kv_heads, 1, width), 0.05, np.float32), "scale") if bits else None
    quantized = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": bits}
    return list(
        b.ops(
            "GroupQueryAttention",
            *(*inputs, *[None] * 5, scale, scale),
            outputs=3,
            domain="com.microsoft",
            num_heads=heads,
            kv_num_heads=kv_heads,
            **(quantized if bits else {}),
        )
    )


def milliseconds(name: str, context: int, sizes: tuple[int, int, int], threads: int, steps: int) -> list[float]:
    """Times of `steps` steps at `context` tokens, sorted."""
    stored, bits, form = FORMS[name]
    heads, kv_heads, width = sizes
    cache_shape = (1, kv_heads, context, width // 2 if bits == 4 else width)

    def value(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

    counts = zip("qkv", (heads, kv_heads, kv_heads), strict=True)
    x = [value(letter, FLOAT, (1, 1, count * width)) for letter, count in counts]
    caches = [value(f"past_{letter}", stored, cache_shape) for letter in "kv"]
    lengths = [value("last", ir.DataType.INT32, (1,)), value("total", ir.DataType.INT32, ())]
    b = GraphBuilder()
    outputs = form(b, x, caches, lengths, sizes)
    for output, like in zip(outputs, (x[0], *caches), strict=True):
        output.type, output.shape = like.type, like.shape
    graph = ir.Graph(
        [*x, *caches, *lengths],
        outputs,
        nodes=b.nodes,
        initializers=b.initializers,
        opset_imports={"": 24, "com.microsoft": 1},
        name=name,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    proto = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
    session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {v.name: rng.standard_normal(tuple(v.shape or ()), np.float32) for v in x}
    feeds |= {"last": np.asarray([context - 1], np.int32), "total": np.asarray(context, np.int32)}
    buffers = [rng.uniform(0, 8, cache_shape).astype(stored.numpy()) for _ in caches]
    binding = session.io_binding()
    for name_, array in feeds.items():
        binding.bind_cpu_input(name_, array)
    for past, present, buffer in zip(caches, outputs[1:], buffers, strict=True):
        binding.bind_input(past.name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        binding.bind_output(present.name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
    binding.bind_output(outputs[0].name)
    seconds = []
    for _ in range(steps + 3):
        began = time.perf_counter()
        session.run_with_iobinding(binding)
        seconds.append(time.perf_counter() - began)
    return sorted(1000 * second for second in seconds[3:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--heads", type=int, nargs=2, default=[16, 4], help="query heads, key-value heads")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    print("| cache | ms a step, median | lowest |\n|---|---|---|")
    for name in FORMS:
        sizes = (*arguments.heads, arguments.head_dim)
        times = milliseconds(name, arguments.context, sizes, arguments.threads, arguments.steps)
        print(f"| {name} | {statistics.median(times):.2f} | {times[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
