"""An optional input becomes one that must be given."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["RequiredInput"]


class RequiredInput(ir.passes.InPlacePass):
    """Takes the default of the input `name` away.

    TensorRT's parser takes an input with a default for a constant. Without one, `logits_to_keep` is an input whose
    value decides a shape, and prefill can still ask for the last position's logits alone.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop the initializer of that name; the input stays."""
        value = model.graph.initializers.pop(self.name, None)
        if value is not None:
            value.const_value = None
        return ir.passes.PassResult(model, modified=value is not None)
