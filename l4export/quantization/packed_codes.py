"""A quantised weight whose codes are written in the order of a device's kernels."""

from __future__ import annotations

import numpy as np

from l4export.engine.weight_layout import fits, pack, rows_together
from l4export.quantization.weights import CodedWeight
from l4export.weights.evaluation import Evaluation, Output
from l4export.weights.recipes import Recipe, Region

__all__ = ["PackedCodes", "packable"]


class PackedCodes(Evaluation):
    """The outputs of a `CodedWeight` [E, N, K], with codes in the order of `l4export.engine.weight_layout`.

    Shapes and dtypes stay. `plain` is the weight's codes.

    Raises:
        ValueError: codes that have no such order.
    """

    def __init__(self, plain: Output) -> None:
        weight = _coded(plain)
        if not packable(plain):
            raise ValueError(f"{plain!r}: these codes have no order of their own on a device")
        super().__init__(weight.lead, row_multiple=rows_together(weight.scheme.bits))
        self.plain, self.bits = plain, weight.scheme.bits
        self.outputs = tuple(Output(self, i, out.dtype, out.dims) for i, out in enumerate(weight.outputs))

    def evaluate(self, region: Region) -> tuple[np.ndarray, ...]:
        """What the weight has of the region, its codes packed."""
        codes, *others = self.plain.evaluation.evaluate(region)
        return pack(codes, self.bits), *others


def packable(codes: Recipe) -> bool:
    """Whether `PackedCodes` can hold them: codes of an integer kind, of matrices that the order is defined for."""
    if not isinstance(codes, Output) or not isinstance(codes.evaluation, CodedWeight):
        return False
    weight = codes.evaluation
    plain_integers = weight.scheme.kind in {"int4", "int8"} and not weight.scheme.positive
    return plain_integers and codes.index == 0 and fits(weight.lead[-1], weight.k, weight.scheme.bits)


def _coded(codes: Output) -> CodedWeight:
    assert isinstance(codes.evaluation, CodedWeight)
    return codes.evaluation
