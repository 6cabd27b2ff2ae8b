"""The activation of feed-forward layers as one kernel."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, own_name, replace_node
from l4export.graph.conditions import require_none
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of

__all__ = ["FuseSwish"]


class FuseSwish(ir.passes.InPlacePass):
    """`Swish(x)` -> `com.microsoft.QuickGelu(x)` with the same alpha: x * sigmoid(alpha * x) either way.

    ONNX Runtime has no CUDA kernel for `Swish` and executes its definition, a product, a sigmoid and a product.

    Raises:
        onnx_ir.passes.PreconditionError: an `l4.MoE` is left, whose body has a `Swish` of its own.
    """

    def requires(self, model: ir.Model) -> None:
        """Experts are fused."""
        require_none(model, "MoE", DOMAIN, "run FuseExperts first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every `Swish`."""
        nodes = nodes_of(model, "Swish")
        for node in nodes:
            b = GraphBuilder.beside(node)
            alpha = node.attributes.get_float("alpha", 1.0)
            y = b.op("QuickGelu", node.inputs[0], domain="com.microsoft", name=own_name(node), alpha=alpha)
            replace_node(model.graph, node, b, [y])
        if nodes:
            model.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=bool(nodes))
