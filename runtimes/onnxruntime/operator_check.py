"""Does an execution provider compute an engine's fused operators as the CPU does? Asked before it is trusted.

Fused attention, MoE and quantised operators have been wrong on single providers without an error, and what ONNX Runtime
publishes for QMoE's CUDA kernel with weights in the schema's order is a test for finite numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable
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

_OPERATORS = frozenset({"GroupQueryAttention", "MatMulNBits", "MoE", "QMoE"})
_MANY = 16
"""Tokens of a prompt, unless the angles end before: providers have other kernels for one token than for many."""

_ACCEPTED = 5e-2
"""Of the largest |output|. Sums of float16 differ by 1e-3 of it, activations that one side rounds to int8 by 1e-2;
weights in another order, another activation function or another rotation, by as much as the outputs are large."""


def check_operators(decoder: Path, provider: str, open_graph: OpenGraph | None = None) -> list[str]:
    """Run one node of each kind in the graph alone, with its own weights, on the CPU and on the provider.

    A kind is an operator with its attributes and the shapes of its weights; all else is seeded random numbers.

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
        for tokens, past in _calls(node):
            worst = _difference(*(_outputs(session, node, tokens, past) for session in sessions))
            if not worst <= _ACCEPTED:
                raise EnvironmentLacks(
                    f"{decoder}: {provider} computes {node.op_type} {node.name} differently from the CPU, by "
                    f"{worst:.2g} of its largest output for {tokens} tokens; use another version of onnxruntime-gpu"
                )
    return list(compared.values())


def _kind(node: ir.Node) -> str:
    shapes = [value.shape if value is not None and value.const_value is not None else None for value in node.inputs]
    return f"{node.op_type} {sorted((name, str(value.value)) for name, value in node.attributes.items())} {shapes}"


def _calls(node: ir.Node) -> list[tuple[int, int]]:
    """New tokens, and tokens in the cache before."""
    is_rotated = node.op_type == "GroupQueryAttention" and node.attributes.get_int("do_rotary", 0) == 1
    many = min(_MANY, _weight_shape(node, 7)[0]) if is_rotated else _MANY
    return [(1, 0), (many, 0), (1, many - 1)]


def _outputs(session: Any, node: ir.Node, tokens: int, past: int) -> list[NDArray[np.float32]]:
    """Of a call; of caches the slots that hold tokens."""
    outputs = session.run(None, _feeds(node, tokens, past))
    return [np.asarray(y[:, :, : past + tokens] if y.ndim == 4 else y, dtype=np.float32) for y in outputs]


def _difference(expected: list[NDArray[np.float32]], got: list[NDArray[np.float32]]) -> float:
    """max |difference| over the largest |value|, of the output that differs most; NaN when something is not finite."""
    return float(np.max([np.abs(b - a).max() / np.abs(a).max() for a, b in zip(expected, got, strict=True)]))


def _feeds(node: ir.Node, tokens: int, past: int) -> dict[str, NDArray[Any]]:
    """An array for every input of the node that is not a weight, by its name."""
    random = np.random.default_rng(0)

    def floats(*shape: int) -> NDArray[np.float16]:
        return random.standard_normal(shape).astype(np.float16)

    computed = [str(value.name) for value in node.inputs if value is not None and value.const_value is None]
    match node.op_type:
        case "MatMulNBits":
            arrays: list[NDArray[Any]] = [floats(tokens, node.attributes.get_int("K"))]
        case "GroupQueryAttention":
            heads, kv_heads = (node.attributes.get_int(name) for name in ("num_heads", "kv_num_heads"))
            width = _weight_shape(node, 3)[3]
            arrays = [floats(1, tokens, count * width) for count in (heads, kv_heads, kv_heads)]
            arrays += [floats(1, kv_heads, past + tokens, width) for _ in "kv"]
            arrays += [np.asarray([past + tokens - 1], np.int32), np.asarray(past + tokens, np.int32)]
        case _:
            experts, _, packed = _weight_shape(node, 2)
            width = packed * 8 // node.attributes.get_int("expert_weight_bits", 8)
            arrays = [floats(tokens, width), floats(tokens, experts)]
    return dict(zip(computed, arrays, strict=True))


def _weight_shape(node: ir.Node, index: int) -> tuple[Any, ...]:
    value = node.inputs[index]
    assert value is not None and value.shape is not None
    return tuple(value.shape)


def _alone(node: ir.Node) -> bytes:
    """A graph of the node and its weights; what else it reads are inputs, float16 or as `_feeds` has them."""
    import onnx_ir as ir

    feeds = _feeds(node, 1, 0)

    def operand(value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return None
        if value.const_value is not None:
            return ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)
        array = feeds[str(value.name)]
        return ir.Value(
            name=value.name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape([f"{value.name}_{axis}" for axis in range(array.ndim)]),
        )

    operands = [operand(value) for value in node.inputs]
    given = [value for value in operands if value is not None]
    float16 = ir.TensorType(ir.DataType.FLOAT16)
    outputs = [ir.Value(name=f"y{index}", type=float16) for index in range(len(node.outputs))]
    graph = ir.Graph(
        [value for value in given if value.const_value is None],
        outputs,
        nodes=[ir.Node(node.domain, node.op_type, operands, list(node.attributes.values()), outputs=outputs)],
        initializers=[value for value in given if value.const_value is not None],
        opset_imports={"": 24, node.domain: 1},
        name=str(node.name),
    )
    serialized: bytes = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
    return serialized


def _open(graph: bytes, folder: Path, provider: str) -> Any:
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))
    return ort.InferenceSession(graph, options, providers=[provider])
