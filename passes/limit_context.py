"""How long a sequence may become."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.dialect import is_dialect

__all__ = ["LimitContext"]


class LimitContext(ir.passes.InPlacePass):
    """Makes the graph refuse sequences of more than `max_context` tokens.

    Sets `max_context` of `l4.SequenceLengths`, whose node `sequence_must_fit_max_context` then stops the run. Later
    passes rely on it: rotation tables end there, and a chunk that is no shorter needs no mask.
    """

    def __init__(self, max_context: int) -> None:
        super().__init__()
        self.max_context = max_context

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set the limit."""
        modified = False
        for node in model.graph:
            if is_dialect(node, "SequenceLengths") and node.attributes.get_int("max_context") != self.max_context:
                node.attributes["max_context"] = ir.AttrInt64("max_context", self.max_context)
                modified = True
        return ir.passes.PassResult(model, modified=modified)
