"""What a graph for TensorRT cannot refuse is left to the runtime."""

from __future__ import annotations

import onnx_ir as ir

from l4export.dialect import REFUSALS
from l4export.graph import GraphBuilder

__all__ = ["RuntimeChecks"]


class RuntimeChecks(ir.passes.InPlacePass):
    """Takes the refusals of bad input out of the graph.

    A refusal is a Gather that is out of bounds when the input is bad, and gives 0 otherwise; ONNX calls that an error,
    TensorRT reads what it finds. Its 0 becomes a constant. What the graph refused the runtime has to: ids outside the
    vocabulary, masks that are not padded on the right, sequences that do not fit (`l4export.runtimes.session`).

    Must run after `InlineDialect`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every refusal."""
        found = [node for node in model.graph if str(node.name).rpartition("/")[2] in REFUSALS]
        for node in found:
            b = GraphBuilder(scope=str(node.name))
            passed = b.constant(0, "passed")
            model.graph.register_initializer(passed)
            node.outputs[0].replace_all_uses_with(passed)
        model.graph.remove(found, safe=True)
        return ir.passes.PassResult(model, modified=bool(found))
