"""Scales of FP8 activations, once they have been measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from l4export.passes.quantize_activations import fp8_products

__all__ = ["SetActivationScales"]


class SetActivationScales(ir.passes.InPlacePass):
    """Gives every pair of QuantizeLinear and DequantizeLinear that `QuantizeActivations` has placed its scale.

    A build plans its graph before the scales are known, because they are measured with the weights that it writes.

    Args:
        scales: By the weight's name (`l4export.calibration.activation_scales`). Products that read one x have one.
    """

    def __init__(self, scales: Mapping[str, float]) -> None:
        super().__init__()
        self.scales = scales

    def requires(self, model: ir.Model) -> None:
        """Some product with an FP8 weight rounds what it is multiplied by."""
        if not _rounded(model):
            raise ir.passes.PreconditionError("no activation is rounded; run QuantizeActivations first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set the constant of every pair that has another scale."""
        modified = False
        for scale, weight in _rounded(model):
            assert scale.dtype is not None and scale.const_value is not None
            value = np.asarray(self.scales[weight], scale.dtype.numpy())
            if scale.const_value.numpy() != value:
                scale.const_value, modified = ir.tensor(value, name=scale.name), True
        return ir.passes.PassResult(model, modified=modified)


def _rounded(model: ir.Model) -> list[tuple[ir.Value, str]]:
    """The scale of every rounded activation, and the name of a weight that it is multiplied by."""
    found = []
    for product in fp8_products(model.graph):
        rounding = product.x.producer()
        if rounding is not None and rounding.op_type == "DequantizeLinear" and rounding.inputs[1] is not None:
            found.append((rounding.inputs[1], product.weight))
    return found
