"""The same products by the operators of l4.cpu and by ONNX Runtime's, over random weights, for benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from cpu_kernel_models import DOMAIN
from onnx import TensorProto, helper, numpy_helper

from l4export.engine.cpu_weight_layout import CpuFormat

_RNG = np.random.default_rng(0)
"""Of weights, of which no two are equal: ONNX Runtime packs equal ones once."""

OPSETS = (("", 20), (DOMAIN, 1), ("com.microsoft", 1))


def own_linear(layout: CpuFormat, count: int, activations: str) -> onnx.ModelProto:
    """A model that multiplies x by `count` matrices."""
    attributes = {"N": layout.rows, "K": layout.columns, "activations": activations, **_coding(layout)}
    names = [f"w{i}" for i in range(count)]
    nodes = [helper.make_node("Linear", ["x", w], [f"y_{w}"], domain=DOMAIN, **attributes) for w in names]
    return _model(nodes, {w: _tiles(layout) for w in names}, ["x"])


def onnxruntime_linear(layout: CpuFormat, count: int) -> onnx.ModelProto:
    """The same with MatMulNBits and activations in int8; its scales are float32."""
    n, k, block = layout.rows, layout.columns, layout.block_size
    attributes = {"N": n, "K": k, "bits": layout.bits, "block_size": block, "accuracy_level": 4}
    weights, nodes = {}, []
    for i in range(count):
        weights[f"w{i}"] = _bytes(n, k // block, block * layout.bits // 8)
        weights[f"s{i}"] = np.full((n, k // block), 0.01, np.float32)
        inputs = ["x", f"w{i}", f"s{i}"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{i}"], domain="com.microsoft", **attributes))
    return _model(nodes, weights, ["x"])


def own_moe(gate_up: CpuFormat, down: CpuFormat, experts: int) -> onnx.ModelProto:
    """A model of one operator MoE, k = 1, without a shared expert."""
    coding = {name: [value] * 2 for name, value in _coding(gate_up).items()}
    sizes = {"hidden": down.rows, "intermediate": down.columns, "experts": experts, "k": 1, "activations": "int8"}
    node = helper.make_node("MoE", ["x", "logits", "w1", "w2"], ["y"], domain=DOMAIN, **sizes, **coding)
    weights = {"w1": np.stack([_tiles(gate_up)] * experts), "w2": np.stack([_tiles(down)] * experts)}
    return _model([node], weights, ["x", "logits"])


def onnxruntime_moe(gate_up: CpuFormat, down: CpuFormat, experts: int) -> onnx.ModelProto:
    """The same with QMoE, in the form that l4export gives it."""
    weights: dict[str, np.ndarray] = {}
    for name, f in (("1", gate_up), ("2", down)):
        weights[f"w{name}"] = np.stack([_bytes(f.rows, f.columns * f.bits // 8)] * experts)
        weights[f"s{name}"] = np.full((experts, f.rows, f.blocks), 0.01, np.float32)
    node = helper.make_node(
        "QMoE",
        ["x", "logits", "w1", "s1", "", "w2", "s2", ""],
        ["y"],
        domain="com.microsoft",
        k=1,
        normalize_routing_weights=1,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        expert_weight_bits=gate_up.bits,
        block_size=gate_up.block_size,
        accuracy_level=4,
    )
    return _model([node], weights, ["x", "logits"])


def _coding(layout: CpuFormat) -> dict[str, int]:
    return {"bits": layout.bits, "block_size": layout.block_size, "zero_points": int(layout.zero_points)}


def _bytes(*shape: int) -> np.ndarray:
    return np.frombuffer(_RNG.bytes(int(np.prod(shape))), np.uint8).reshape(shape)


def _tiles(layout: CpuFormat) -> np.ndarray:
    tiles = _bytes(layout.tiles, layout.blocks, layout.block_bytes).copy()
    tiles[..., :64].view(np.float16)[...] = 0.01
    return tiles.reshape(layout.shape)


def _model(nodes: list[Any], weights: dict[str, np.ndarray], inputs: list[str]) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in (*inputs, *(node.output[0] for node in nodes))
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "kernels", values[: len(inputs)], values[len(inputs) :], tensors)
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
