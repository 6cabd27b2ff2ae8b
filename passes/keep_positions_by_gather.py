"""`l4.KeepLastPositions` in a form whose sizes are known on the host."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, replace_node
from l4export.graph.conditions import require_dialect
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of

__all__ = ["KeepPositionsByGather"]


class KeepPositionsByGather(ir.passes.InPlacePass):
    """Picks the positions whose logits are wanted by one `Gather` from all rows, one below the other.

        n' = S if min(n, S) <= 0 else min(n, S)
        kept [B, n', D] = Gather(hidden as [B*S, D], r*S + max(new_length_r - n', 0) + 0 .. n'-1)

    It is what the function does: S >= 1, so that min(n, S) <= 0 says n <= 0, and n' = S gives max(new_length_r - S, 0)
    = 0. But every size follows from shapes and from `logits_to_keep` through nodes with a shape among their inputs,
    which ONNX Runtime leaves to the CPU. And a GatherND cannot be captured in a CUDA graph
    (`l4export.graph.host_memory`).

    Raises:
        onnx_ir.passes.PreconditionError: the dialect is inlined already.
    """

    def requires(self, model: ir.Model) -> None:
        """The dialect is there."""
        require_dialect(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the function's calls."""
        nodes = nodes_of(model, "KeepLastPositions", DOMAIN)
        for node in nodes:
            _replace(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    hidden, new_length, keep = node.inputs
    b = GraphBuilder(str(node.name))
    zero, one, last = b.constant(0, "zero"), b.constant(1, "one"), b.constant([1], "last_axis")

    def size(axis: int, name: str) -> ir.Value:
        return b.op("Squeeze", b.op("Shape", hidden, start=axis, end=axis + 1, name=f"{name}_1"), name=name)

    rows, tokens = size(0, "rows"), size(1, "tokens")
    at_most = b.op("Min", keep, tokens, name="at_most")
    keep_all = b.op("LessOrEqual", at_most, zero, name="keep_all")
    count = b.op("Where", keep_all, tokens, at_most, name="count")
    start = b.op("Max", b.op("Sub", new_length, count, name="start_signed"), zero, name="start")
    row_starts = b.op("Range", zero, b.op("Mul", rows, tokens, name="all_tokens"), tokens, name="row_starts")
    firsts = b.op("Unsqueeze", b.op("Add", row_starts, start, name="first"), last, name="first_column")
    positions = b.op("Add", firsts, b.op("Range", zero, count, one, name="offsets"), name="positions")
    flat = b.op("Flatten", hidden, axis=2, name="flat")
    replace_node(graph, node, b, [b.op("Gather", flat, positions, axis=0, name="kept")])
