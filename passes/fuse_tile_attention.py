"""`RotaryEmbedding` + `l4.TileAttention` -> ONNX Runtime's `RotaryEmbedding` and `MultiHeadAttention`."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, own_name, replace_node
from l4export.graph.conditions import require_dialect
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of, producer

__all__ = ["FuseTileAttention"]

_ORT = "com.microsoft"


class FuseTileAttention(ir.passes.InPlacePass):
    """The vision tower's attention by the operators that ONNX Runtime has kernels for.

    * Rotation: `com.microsoft.RotaryEmbedding` with the tables cos, sin [M, d/2] as they are and one position id, 0,
      from which it counts in every tile; the standard operator would want the tables once a tile.
    * Attention: `com.microsoft.MultiHeadAttention` without masks, which takes flash attention at any head width.

    Raises:
        onnx_ir.passes.PreconditionError: the dialect is inlined already, or a rotation is not over adjacent pairs with
            the angles of an `l4.TileAngles`.
    """

    def requires(self, model: ir.Model) -> None:
        """Every rotation can be taken over."""
        require_dialect(model)
        for node in nodes_of(model, "TileAttention", DOMAIN):
            for value in node.inputs[:2]:
                rotary = producer(value, ("RotaryEmbedding", ""))
                angles = rotary and producer(rotary.inputs[1], ("TileAngles", DOMAIN))
                if rotary is None or angles is None or rotary.attributes.get_int("interleaved", 0) != 1:
                    raise ir.passes.PreconditionError(
                        f"{node.name}: q and k must be rotated over adjacent pairs, by l4.TileAngles"
                    )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every `l4.TileAttention` and the rotations before it."""
        nodes = nodes_of(model, "TileAttention", DOMAIN)
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        b = GraphBuilder("/rotary")
        start = b.constant([0], "start")
        model.graph.register_initializer(start)
        for node in nodes:
            for value in node.inputs[:2]:
                _rotate(model.graph, producer(value, ("RotaryEmbedding", "")), start)
            _attend(model.graph, node)
        for angles in nodes_of(model, "TileAngles", DOMAIN):
            model.graph.remove(angles, safe=True)
        model.opset_imports[_ORT] = 1
        return ir.passes.PassResult(model, modified=True)


def _rotate(graph: ir.Graph, node: ir.Node | None, start: ir.Value) -> None:
    assert node is not None
    angles = producer(node.inputs[1], ("TileAngles", DOMAIN))
    assert angles is not None
    b = GraphBuilder.beside(node)
    attributes = {"interleaved": 1, "num_heads": node.attributes.get_int("num_heads")}
    tables = angles.inputs[1:]
    rotated = b.op("RotaryEmbedding", node.inputs[0], start, *tables, domain=_ORT, name=own_name(node), **attributes)
    replace_node(graph, node, b, [rotated])


def _attend(graph: ir.Graph, node: ir.Node) -> None:
    b, heads = GraphBuilder.beside(node), node.attributes.get_int("num_heads")
    y = b.op("MultiHeadAttention", *node.inputs, domain=_ORT, name=own_name(node), num_heads=heads)
    replace_node(graph, node, b, [y])
