"""`l4.TileAttention` -> standard `Attention`."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, own_name, replace_node
from l4export.graph.conditions import require_dialect
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of

__all__ = ["LowerTileAttention"]


class LowerTileAttention(ir.passes.InPlacePass):
    """The vision tower's attention as the operator of opset 23, q, k and v with their heads side by side, no mask.

    Raises:
        onnx_ir.passes.PreconditionError: the dialect is inlined already.
    """

    def requires(self, model: ir.Model) -> None:
        """The dialect is there."""
        require_dialect(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every `l4.TileAttention`."""
        nodes = nodes_of(model, "TileAttention", DOMAIN)
        for node in nodes:
            b, heads = GraphBuilder.beside(node), node.attributes.get_int("num_heads")
            y = b.op("Attention", *node.inputs, name=own_name(node), q_num_heads=heads, kv_num_heads=heads)
            replace_node(model.graph, node, b, [y])
        return ir.passes.PassResult(model, modified=bool(nodes))
