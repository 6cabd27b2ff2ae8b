"""`QKNorm(RotaryEmbedding(x))` -> `RotaryEmbedding(QKNorm(x))`, so that attention fusion can absorb the rotation."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.dialect import is_dialect

__all__ = ["MoveQKNormBeforeRotary"]


class MoveQKNormBeforeRotary(ir.passes.InPlacePass):
    """Swaps the weightless RMS norm of each head with its rotation.

    norm(R x) = R x / sqrt(|R x|^2 / d + eps) = R x / sqrt(|x|^2 / d + eps) = R norm(x), since a rotation R keeps
    lengths and the norm has no weight. Both nodes keep their names; only the order of the data changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Swap wherever a norm is the only reader of a rotation."""
        swapped = False
        for norm in list(model.graph):
            if not is_dialect(norm, "QKNorm"):
                continue
            rotated = norm.inputs[0]
            rotary = rotated.producer() if rotated is not None else None
            if rotary is None or rotary.op_type != "RotaryEmbedding" or len(rotary.outputs[0].uses()) != 1:
                continue
            _swap(model.graph, rotary, norm)
            swapped = True
        return ir.passes.PassResult(model, modified=swapped)


def _swap(graph: ir.Graph, rotary: ir.Node, norm: ir.Node) -> None:
    """x -> rotary -> norm -> readers   becomes   x -> norm -> rotary -> readers."""
    x = rotary.inputs[0]
    ir.convenience.replace_all_uses_with(norm.outputs[0], rotary.outputs[0])
    norm.replace_input_with(0, x)
    rotary.replace_input_with(0, norm.outputs[0])
    graph.remove(norm)
    graph.insert_before(rotary, norm)
