"""Clean-up: what nothing reads."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from l4export.graph.builder import remove_unused_initializers

__all__ = ["RemoveUnused"]


class RemoveUnused(ir.passes.InPlacePass):
    """Merges equal subexpressions and drops nodes, functions, opsets and weights without readers.

    `logits_to_keep` is an input *and* an initializer (its default), so that a client need not pass it; such a pair
    is kept. No recipe is evaluated: weights are compared by identity only.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the common passes."""
        modified = False
        for step in (
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            common.RemoveUnusedOpsetsPass(),
        ):
            modified |= step(model).modified
        modified |= remove_unused_initializers(model.graph) > 0
        return ir.passes.PassResult(model, modified=modified)
