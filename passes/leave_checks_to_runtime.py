"""Leaves to the runtime what a graph for TensorRT cannot refuse."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder
from l4export.graph.conditions import require_dialect
from l4export.graph.dialect import REFUSALS

__all__ = ["LeaveChecksToRuntime"]


class LeaveChecksToRuntime(ir.passes.InPlacePass):
    """Takes the refusals of bad input out of the graph.

    A refusal is a Gather that is out of bounds when the input is bad, and gives 0 otherwise; ONNX calls that an error,
    TensorRT reads what it finds. Its 0 becomes a constant. The runtime (`l4export.runtimes.session`) must refuse what
    the graph refused: ids outside the vocabulary, masks that are not padded on the right, sequences that do not fit,
    calls across a chunk's end.

    Raises:
        onnx_ir.passes.PreconditionError: the dialect's functions are inlined already.
        onnx_ir.passes.PostconditionError: a refusal is left.
    """

    def requires(self, model: ir.Model) -> None:
        """The refusals are in the dialect's functions."""
        require_dialect(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every refusal in the dialect's functions."""
        found = _refusals(model)
        for body, node in found:
            b = GraphBuilder()
            node.outputs[0].replace_all_uses_with(b.op("Constant", value_int=0, name="passed"))
            body.insert_before(node, b.nodes)
            body.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Nothing refuses its input."""
        for _, node in _refusals(model):
            raise ir.passes.PostconditionError(f"{node.name} is left")


def _refusals(model: ir.Model) -> list[tuple[ir.Function, ir.Node]]:
    return [(body, node) for body in model.functions.values() for node in body if node.name in REFUSALS]
