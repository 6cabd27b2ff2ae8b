"""Small models with the operators of domain l4.cpu, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cpu_kernel_library import MoeTiles, Tiles, kernel_library_path
from onnx import TensorProto, helper, numpy_helper

DOMAIN = "l4.cpu"


def session(model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    """Raises what onnxruntime raises when the operator refuses its node."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.register_custom_ops_library(str(kernel_library_path()))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def linear_attributes(tiles: Tiles, activations: str) -> dict[str, Any]:
    layout = tiles.layout
    coding = {"bits": layout.bits, "block_size": layout.block_size, "zero_points": int(layout.zero_points)}
    return {"N": layout.rows, "K": layout.columns, "activations": activations, **coding}


def linear_model(tiles: np.ndarray, attributes: Mapping[str, Any], bias: np.ndarray | None = None) -> onnx.ModelProto:
    return _model("Linear", ["x"], {"tiles": tiles} | ({} if bias is None else {"bias": bias}), attributes)


def moe_attributes(tiles: MoeTiles, experts: int, k: int, activations: str) -> dict[str, Any]:
    return {"experts": experts, "k": k, **gated_attributes(tiles, activations)}


def gated_attributes(tiles: MoeTiles, activations: str) -> dict[str, Any]:
    """Of MLP, and some of MoE."""
    gate_up, down = tiles.layouts[:2]
    sizes = {"hidden": gate_up.columns, "intermediate": down.columns}
    lists = {"bits": "bits", "block_size": "block_size", "zero_points": "zero_points"}
    return (
        sizes
        | {"activations": activations}
        | {name: [int(getattr(layout, field)) for layout in tiles.layouts] for name, field in lists.items()}
    )


def moe_model(arrays: list[np.ndarray], attributes: Mapping[str, Any]) -> onnx.ModelProto:
    names = ("gate_up", "down", "shared_gate_up", "shared_down")
    return _model("MoE", ["x", "logits"], dict(zip(names, arrays, strict=False)), attributes)


def mlp_model(arrays: list[np.ndarray], attributes: Mapping[str, Any]) -> onnx.ModelProto:
    return _model("MLP", ["x"], dict(zip(("gate_up", "down"), arrays, strict=True)), attributes)


def _model(
    op: str, inputs: list[str], constants: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> onnx.ModelProto:
    node = helper.make_node(op, [*inputs, *constants], ["y"], name=f"the_{op}", domain=DOMAIN, **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "kernel", values, [result], initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
