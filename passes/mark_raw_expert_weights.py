"""Which byte order the weights of `QMoE` have."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["MarkRawExpertWeights"]


class MarkRawExpertWeights(ir.passes.InPlacePass):
    """Sets `weights_prepacked=0` on every `QMoE`: the codes lie as the operator's schema says, [E, N, K * bits / 8].

    Without the attribute ONNX Runtime's CUDA provider takes them for codes that were shuffled beforehand for one of
    its kernels, and computes something else.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Mark every `com.microsoft.QMoE`."""
        fused = [node for node in model.graph if (node.op_type, node.domain) == ("QMoE", "com.microsoft")]
        for node in fused:
            node.attributes["weights_prepacked"] = ir.AttrInt64("weights_prepacked", 0)
        return ir.passes.PassResult(model, modified=bool(fused))
