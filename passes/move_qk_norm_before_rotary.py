"""`QKNorm(RotaryEmbedding(x))` -> `RotaryEmbedding(QKNorm(x))`, so that attention fusion can absorb the rotation."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.conditions import require_dialect
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of, rotation

__all__ = ["MoveQKNormBeforeRotary"]


class MoveQKNormBeforeRotary(ir.passes.InPlacePass):
    """Swaps the weightless RMS norm of each head with its rotation.

    norm(R x) = R x / sqrt(|R x|^2 / d + eps) = R x / sqrt(|x|^2 / d + eps) = R norm(x), since a rotation R keeps
    lengths and the norm has no weight. Both nodes keep their names; only the order of the data changes.

    Raises:
        onnx_ir.passes.PreconditionError: the dialect is inlined already.
    """

    def requires(self, model: ir.Model) -> None:
        """The dialect is there."""
        require_dialect(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Swap wherever a norm is the only reader of a rotation."""
        swapped = False
        for norm in nodes_of(model, "QKNorm", DOMAIN):
            rotary = rotation(norm.inputs[0])
            if rotary is None or len(rotary.outputs[0].uses()) != 1:
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
