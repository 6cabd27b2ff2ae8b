"""Numbers that the host knows from shapes, where the device calculates with them."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder
from l4export.graph.conditions import require_inlined
from l4export.graph.host_memory import host_values, is_read_on_host

__all__ = ["CopyLengthsToDevice"]

_BROADCASTS = frozenset({"Add", "Max", "Min", "Mul", "Sub"})
"""Operators to which a number is the same as a tensor [1] of it, beside an operand that has a dimension."""


class CopyLengthsToDevice(ir.passes.InPlacePass):
    """Hands a length that was computed on the host to the device without a copy of memory.

    n  ->  Range(n, n + 1, 1) = [n]      where the reader computes on the device

    `Range` reads its bounds in the host's memory and writes its result in the device's: the number goes along with the
    launch of the kernel. Reading n itself would be a copy from host to device in every call, with which ONNX Runtime
    captures no CUDA graph. Lengths are int64 scalars, or int64 [1]; the readers are sums, differences and the like with
    another operand that has a dimension.

    Raises:
        onnx_ir.passes.PreconditionError: the dialect is not inlined yet.
    """

    def requires(self, model: ir.Model) -> None:
        """What the functions hold is in the graph."""
        require_inlined(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Give the device's readers of every length its copy."""
        host = host_values(model.graph)
        made: dict[ir.Value, ir.Value] = {}
        for node in list(model.graph):
            if node.op_type not in _BROADCASTS or host.issuperset(node.outputs):
                continue
            for index, value in enumerate(node.inputs):
                if value not in host or is_read_on_host(node, index):
                    continue
                if value not in made:
                    made[value] = _copy(model.graph, value)
                node.replace_input_with(index, made[value])
        return ir.passes.PassResult(model, modified=bool(made))


def _copy(graph: ir.Graph, length: ir.Value) -> ir.Value:
    """int64 [1] on the device."""
    maker = length.producer()
    assert maker is not None
    b = GraphBuilder(f"{maker.name}/on_device")
    one = b.constant(1, "one")
    number = b.op("Squeeze", length, name="number")
    copy = b.op("Range", number, b.op("Add", number, one, name="end"), one, name="copy")
    for value in b.initializers:
        graph.register_initializer(value)
    graph.insert_after(maker, b.nodes)
    return copy
