"""Which byte order the weights of `QMoE` have."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.conditions import require_none
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of

__all__ = ["MarkRawExpertWeights"]


class MarkRawExpertWeights(ir.passes.InPlacePass):
    """Sets `weights_prepacked=0` on every `QMoE`: the codes lie as the operator's schema says, [E, N, K * bits / 8].

    Without the attribute ONNX Runtime's CUDA provider takes them for codes that were shuffled beforehand for one of
    its kernels, and computes something else.

    Raises:
        onnx_ir.passes.PreconditionError: an `l4.MoE` is left.
    """

    def requires(self, model: ir.Model) -> None:
        """Experts that are quantised are a `QMoE`."""
        require_none(model, "MoE", DOMAIN, "run FuseExperts and QuantizeWeightsForOnnxRuntime first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Mark every `com.microsoft.QMoE`."""
        marked = "weights_prepacked"
        fused = [node for node in nodes_of(model, "QMoE", "com.microsoft") if marked not in node.attributes]
        for node in fused:
            node.attributes[marked] = ir.AttrInt64(marked, 0)
        return ir.passes.PassResult(model, modified=bool(fused))
