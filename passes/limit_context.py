"""How long a sequence may become."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.conditions import require_dialect
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of

__all__ = ["LimitContext"]


class LimitContext(ir.passes.InPlacePass):
    """Makes the graph refuse sequences of more than `max_context` tokens.

    Sets `max_context` of `l4.SequenceLengths`, whose node `sequence_must_fit_max_context` then stops the run. Later
    passes rely on it: rotation tables end there, and a chunk that is no shorter needs no mask.

    Raises:
        onnx_ir.passes.PreconditionError: the dialect is inlined already.
    """

    def __init__(self, max_context: int) -> None:
        super().__init__()
        self.max_context = max_context

    def requires(self, model: ir.Model) -> None:
        """The dialect is there."""
        require_dialect(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set the limit."""
        counts = nodes_of(model, "SequenceLengths", DOMAIN)
        others = [node for node in counts if node.attributes.get_int("max_context") != self.max_context]
        for node in others:
            node.attributes["max_context"] = ir.AttrInt64("max_context", self.max_context)
        return ir.passes.PassResult(model, modified=bool(others))
