"""The projections to queries, keys and values in one product, whatever their weights are stored as."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import remove_unused_initializers
from l4export.graph.conditions import require_dialect
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import attention_nodes, nodes_of
from l4export.passes.fuse_attention import can_fuse
from l4export.passes.pack_projections import is_own, kind, pack

__all__ = ["PackQKV"]

_PRODUCTS = frozenset({"FusedMatMul", "MatMulNBits"})
_BETWEEN = frozenset({("Mul", ""), ("QKNorm", DOMAIN), ("RotaryEmbedding", ""), ("Temperature", DOMAIN)})
"""What may lie between a projection and attention; its first input is what it changes."""


class PackQKV(ir.passes.InPlacePass):
    """[x Wq', x Wk', x Wv'] = x [Wq; Wk; Wv]', cut by `Split`, for every `GroupQueryAttention`.

    It is what `PackProjections` does for quantised weights, for attention alone and for float weights too: attention
    takes the product as it is (`AttendToPackedQKV`). Gate and up stay two products. Packed they need a `Split`, so that
    there are as many kernels as before, and the Split copies what the products have written.

    A layer whose three weights are stored in different ways stays as it is.

    Raises:
        onnx_ir.passes.PreconditionError: attention is not fused, or the dialect is inlined already.
    """

    def requires(self, model: ir.Model) -> None:
        """Every attention that can be fused is."""
        require_dialect(model)
        for node in filter(can_fuse, attention_nodes(model)):
            raise ir.passes.PreconditionError(f"{node.name}: run FuseAttention first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Pack the three products of every layer."""
        found = [_products(node) for node in nodes_of(model, "GroupQueryAttention", "com.microsoft")]
        packed = [products for products in found if products]
        for products in packed:
            pack(model.graph, products, note_rows=True)
        if packed:
            remove_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(packed))


def _products(attention: ir.Node) -> list[ir.Node]:
    """The products that queries, keys and values are made by, where they can be one; else none."""
    products = [_product(value) for value in attention.inputs[:3]]
    found = [node for node in products if node is not None and is_own(node)]
    return found if len(found) == 3 and len(set(map(kind, found))) == 1 else []


def _product(value: ir.Value | None) -> ir.Node | None:
    """The projection that a value is made from."""
    node = None if value is None else value.producer()
    while node is not None and (node.op_type, node.domain) in _BETWEEN:
        made_from = node.inputs[0]
        node = None if made_from is None else made_from.producer()
    if node is None or node.op_type not in _PRODUCTS:
        return None
    by_rows = node.op_type == "MatMulNBits" or node.attributes.get_int("transB", 0) == 1
    return node if by_rows else None
