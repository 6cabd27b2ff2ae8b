"""Optional inputs become inputs that must be given."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["RequireInputs"]


class RequireInputs(ir.passes.InPlacePass):
    """Takes the defaults of the optional inputs away.

    TensorRT's parser takes an input with a default for a constant: `logits_to_keep`, which decides a shape, and where a
    mask and a cache start.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop the initializer of every input; the input stays."""
        optional = [value for value in model.graph.inputs if value.name in model.graph.initializers]
        for value in optional:
            del model.graph.initializers[str(value.name)]
            value.const_value = None
        return ir.passes.PassResult(model, modified=bool(optional))
