"""Checks that an execution provider computes an engine's fused operators as the CPU does, before it is trusted.

Fused attention, MoE and quantised operators have been wrong on single providers without an error, and what ONNX Runtime
publishes for QMoE's CUDA kernel with weights in the schema's order is a test for finite numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import PackedWeight
from l4export.errors import EnvironmentLacks
from l4export.runtimes.onnxruntime.portable import cpu_session

if TYPE_CHECKING:
    import onnx

__all__ = ["OpenGraph", "check_operators"]

OpenGraph = Callable[[bytes, Path, str, Sequence[PackedWeight]], Any]
"""An inference session on a serialized graph, the folder of its weights, and an execution provider; of the weights
those that it needs unpacked."""

_OPERATORS = frozenset({"GroupQueryAttention", "MatMulNBits", "MoE", "QMoE"})
_CPU = "CPUExecutionProvider"
_MANY = 16
"""Tokens of a prompt, unless the angles end before: providers have other kernels for one token than for many."""

_ACCEPTED = 5e-2
"""Of the largest |output|. Sums of float16 differ by 1e-3 of it, activations that one side rounds to int8 by 1e-2;
weights in another order, another activation function or another rotation, by as much as the outputs are large."""


def check_operators(
    decoder: Path, provider: str, open_graph: OpenGraph | None = None, packed: Sequence[PackedWeight] = ()
) -> list[str]:
    """Run one node of each kind in the graph alone, with its own weights, on the CPU and on the provider.

    A kind is an operator with its attributes and the shapes of its weights; all else is seeded random numbers. The CPU
    gets the weights of `packed` unpacked.

    Returns:
        The nodes that were compared.

    Raises:
        EnvironmentLacks: the provider computes a node differently.
    """
    open_graph = open_graph or _open
    compared: dict[str, str] = {}
    for operator in _operators(decoder):
        kind, node = operator.kind(), operator.node
        if kind in compared:
            continue
        compared[kind] = node.name
        graph = operator.alone()
        own = [weight for weight in packed if weight.name in operator.weights]
        sessions = [open_graph(graph, decoder.parent, name, own if name == _CPU else ()) for name in (_CPU, provider)]
        for tokens, past in operator.calls():
            feeds = operator.feeds(tokens, past)
            worst = _difference(*(_outputs(session, feeds, past + tokens) for session in sessions))
            if not worst <= _ACCEPTED:
                raise EnvironmentLacks(
                    f"{decoder}: {provider} computes {node.op_type} {node.name} differently from the CPU, by "
                    f"{worst:.2g} of its largest output for {tokens} tokens; use another version of onnxruntime-gpu"
                )
    return list(compared.values())


def _operators(decoder: Path) -> Iterator[_Operator]:
    """The graph's fused operators; weights stay in their files. A few megabytes are read."""
    import onnx

    graph = onnx.load(decoder, load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    widths = {value.name: value.type.tensor_type.shape.dim[-1].dim_value for value in graph.input if _rank(value)}
    for node in graph.node:
        if node.op_type in _OPERATORS:
            weights = {name: constants[name] for name in node.input if name in constants}
            yield _Operator(node, weights, {name: widths[name] for name in node.input if name in widths})


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


@dataclass(frozen=True)
class _Operator:
    """A node of a graph.

    Attributes:
        weights: Those of its inputs that are constants, by their names.
        widths: Of those that are the graph's inputs, as caches are, the last dimension.
    """

    node: onnx.NodeProto
    weights: dict[str, onnx.TensorProto]
    widths: dict[str, int]

    def kind(self) -> str:
        """The same for operators that need not be compared twice."""
        attributes = sorted(str(attribute) for attribute in self.node.attribute)
        shapes = [tuple(self.weights[name].dims) if name in self.weights else None for name in self.node.input]
        return f"{self.node.op_type} {attributes} {shapes}"

    def calls(self) -> list[tuple[int, int]]:
        """New tokens, and tokens in the cache before."""
        is_rotated = self.node.op_type == "GroupQueryAttention" and self.attribute("do_rotary", 0) == 1
        many = min(_MANY, self.weight_shape(7)[0]) if is_rotated else _MANY
        return [(1, 0), (many, 0), (1, many - 1)]

    def feeds(self, tokens: int, past: int) -> dict[str, NDArray[Any]]:
        """An array for every input of the node that is not a weight, by its name."""
        random = np.random.default_rng(0)

        def floats(*shape: int) -> NDArray[np.float16]:
            return random.standard_normal(shape).astype(np.float16)

        match self.node.op_type:
            case "MatMulNBits":
                arrays: list[NDArray[Any]] = [floats(tokens, self.attribute("K"))]
            case "GroupQueryAttention":
                heads, kv_heads = self.attribute("num_heads"), self.attribute("kv_num_heads")
                width = self.widths[self.node.input[3]]
                counts = (heads, kv_heads, kv_heads) if self.node.input[1] else (heads + 2 * kv_heads,)
                arrays = [floats(1, tokens, count * width) for count in counts]
                arrays += [floats(1, kv_heads, past + tokens, width) for _ in "kv"]
                arrays += [np.asarray([past + tokens - 1], np.int32), np.asarray(past + tokens, np.int32)]
            case _:
                experts, _, packed = self.weight_shape(2)
                width = packed * 8 // self.attribute("expert_weight_bits", 8)
                arrays = [floats(tokens, width), floats(tokens, experts)]
        computed = [name for name in self.node.input if name and name not in self.weights]
        return dict(zip(computed, arrays, strict=True))

    def alone(self) -> bytes:
        """A graph of the node and its weights; what else it reads are inputs, float16 or as `feeds` has them."""
        from onnx import TensorProto, helper

        inputs = [
            helper.make_tensor_value_info(
                *(name, helper.np_dtype_to_tensor_dtype(array.dtype)),
                [f"{name}_{axis}" for axis in range(array.ndim)],
            )
            for name, array in self.feeds(1, 0).items()
        ]
        outputs = [f"y{index}" for index in range(len(self.node.output))]
        node = helper.make_node(self.node.op_type, self.node.input, outputs, domain=self.node.domain)
        node.attribute.extend(self.node.attribute)
        untold = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in outputs]
        graph = helper.make_graph([node], self.node.name, inputs, untold, list(self.weights.values()))
        opsets = [helper.make_opsetid("", 24), helper.make_opsetid(self.node.domain, 1)]
        serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
        return serialized

    def weight_shape(self, index: int) -> tuple[int, ...]:
        """Of the weight that is that input."""
        return tuple(self.weights[self.node.input[index]].dims)

    def attribute(self, name: str, default: int | None = None) -> int:
        """An attribute of the node that is an integer."""
        found = [attribute.i for attribute in self.node.attribute if attribute.name == name]
        value = found[0] if found else default
        assert value is not None, name
        return value


def _outputs(session: Any, feeds: dict[str, NDArray[Any]], slots: int) -> list[NDArray[np.float32]]:
    """Of a call; of caches the slots that hold tokens."""
    outputs = session.run(None, feeds)
    return [np.asarray(y[:, :, :slots] if y.ndim == 4 else y, dtype=np.float32) for y in outputs]


def _difference(expected: list[NDArray[np.float32]], got: list[NDArray[np.float32]]) -> float:
    """max |difference| over the largest |value|, of the output that differs most; NaN when something is not finite."""
    return float(np.max([np.abs(b - a).max() / np.abs(a).max() for a, b in zip(expected, got, strict=True)]))


def _open(graph: bytes, folder: Path, provider: str, packed: Sequence[PackedWeight]) -> Any:
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))
    if provider == _CPU:
        return cpu_session(graph, options, folder, packed)
    return ort.InferenceSession(graph, options, providers=[provider])
