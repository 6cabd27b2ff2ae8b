"""An attribute of TensorRT's own on every `Attention`."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.conditions import require_none
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of

__all__ = ["AllowDecomposedAttention"]


class AllowDecomposedAttention(ir.passes.InPlacePass):
    """Sets `TRT_decomposable=1`: where TensorRT has no fused kernel for an attention, it may use several.

    Without it float32, and head widths that no kernel has, cannot be built; where there is a kernel it is used all the
    same. ONNX Runtime and the ONNX checker refuse the attribute, so only TensorRT's pipeline has this pass.

    Raises:
        onnx_ir.passes.PreconditionError: an `l4.Attention` or `l4.TileAttention` is left.
    """

    def requires(self, model: ir.Model) -> None:
        """Every attention is a standard one."""
        require_none(model, "Attention", DOMAIN, "run LowerAttention first")
        require_none(model, "TileAttention", DOMAIN, "run LowerTileAttention first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Mark every standard `Attention`."""
        nodes = [n for n in nodes_of(model, "Attention") if not n.attributes.get_int("TRT_decomposable", 0)]
        for node in nodes:
            node.attributes["TRT_decomposable"] = ir.AttrInt64("TRT_decomposable", 1)
        return ir.passes.PassResult(model, modified=bool(nodes))
