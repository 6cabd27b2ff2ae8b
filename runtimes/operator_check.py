"""Does an execution provider compute an engine's fused operators as the CPU does? Asked before it is trusted.

Fused MoE and quantised operators have been wrong on single providers without an error, and what ONNX Runtime publishes
for QMoE's CUDA kernel with weights in the schema's order is a test for finite numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import EnvironmentLacks

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["OpenGraph", "check_operators"]

OpenGraph = Callable[[bytes, Path, str], Any]
"""An inference session on a serialized graph, the folder of its weights, and an execution provider."""

_OPERATORS = frozenset({"MoE", "QMoE", "MatMulNBits"})
_ROWS = (1, 64)
"""Rows that are tried: providers have other kernels for one than for many."""

_ACCEPTED = 5e-2
"""Of the largest |output|. Sums of float16 differ by 1e-3 of it, activations that one side rounds to int8 by 1e-2;
weights in another order, or another activation function, differ by as much as the outputs are large."""


def check_operators(decoder: Path, provider: str, open_graph: OpenGraph | None = None) -> list[str]:
    """Run one node of each kind in the graph alone, with its own weights, on the CPU and on the provider.

    A kind is an operator with its attributes and the shapes of its weights; inputs are seeded random numbers.

    Returns:
        The nodes that were compared.

    Raises:
        EnvironmentLacks: the provider computes a node differently.
    """
    import onnx_ir as ir

    open_graph = open_graph or _open
    compared: dict[str, str] = {}
    for node in ir.load(decoder).graph:
        if node.op_type not in _OPERATORS or (kind := _kind(node)) in compared:
            continue
        compared[kind] = str(node.name)
        graph = _alone(node)
        sessions = [open_graph(graph, decoder.parent, name) for name in ("CPUExecutionProvider", provider)]
        for rows in _ROWS:
            feeds = {value.name: _random(value.shape, rows) for value in sessions[0].get_inputs()}
            expected, got = (session.run(None, feeds)[0].astype(np.float32) for session in sessions)
            worst = float(np.abs(got - expected).max() / np.abs(expected).max())
            if not worst <= _ACCEPTED:
                raise EnvironmentLacks(
                    f"{decoder}: {provider} computes {node.op_type} {node.name} differently from the CPU, by "
                    f"{worst:.2g} of its largest output for {rows} rows; use another version of onnxruntime-gpu"
                )
    return list(compared.values())


def _kind(node: ir.Node) -> str:
    shapes = [value.shape if value is not None and value.const_value is not None else None for value in node.inputs]
    return f"{node.op_type} {sorted((name, str(value.value)) for name, value in node.attributes.items())} {shapes}"


def _alone(node: ir.Node) -> bytes:
    """A graph of the node, float16 inputs [rows, width] in the place of what is computed."""
    import onnx_ir as ir

    float16, widths = ir.TensorType(ir.DataType.FLOAT16), iter(_widths(node))

    def operand(value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return None
        if value.const_value is None:
            return ir.Value(name=value.name, type=float16, shape=ir.Shape(["rows", next(widths)]))
        return ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)

    operands = [operand(value) for value in node.inputs]
    given = [value for value in operands if value is not None]
    y = ir.Value(name="y", type=float16, shape=ir.Shape(["rows", "width"]))
    graph = ir.Graph(
        [value for value in given if value.const_value is None],
        [y],
        nodes=[ir.Node(node.domain, node.op_type, operands, list(node.attributes.values()), outputs=[y])],
        initializers=[value for value in given if value.const_value is not None],
        opset_imports={"": 24, node.domain: 1},
        name=str(node.name),
    )
    serialized: bytes = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
    return serialized


def _widths(node: ir.Node) -> Sequence[int]:
    """Of the rows, and of the router's logits."""
    weight = node.inputs[2 if node.op_type != "MatMulNBits" else 1]
    assert weight is not None and weight.shape is not None
    if node.op_type == "MatMulNBits":
        return (node.attributes.get_int("K"),)
    experts, _, width = weight.shape.numpy()
    bits = node.attributes.get_int("expert_weight_bits", 8)
    return (width * 8 // bits, experts)


def _random(shape: Sequence[Any], rows: int) -> NDArray[np.float16]:
    return np.random.default_rng(0).standard_normal((rows, int(shape[1]))).astype(np.float16)


def _open(graph: bytes, folder: Path, provider: str) -> Any:
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))
    return ort.InferenceSession(graph, options, providers=[provider])
