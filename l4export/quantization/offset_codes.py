"""A quantised weight whose codes are stored unsigned, as compressed-tensors packs them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from l4export.quantization.weights import CodedWeight
from l4export.weights.evaluation import Evaluation, Output
from l4export.weights.recipes import Region

__all__ = ["OffsetCodes"]


class OffsetCodes(Evaluation):
    """Codes and scales of a weight [.., N, K] of an integer scheme that is `positive`, a code q as q + 2^(bits - 1).

    Codes are uint8 [.., N, K bits / 8], of 4 bits the even k in the low nibble. So the bytes are those of the words of
    32 bits, little-endian, in which compressed-tensors puts 8 or 4 codes from the lowest bits up.

    Raises:
        ValueError: another scheme.
    """

    def __init__(self, weight: CodedWeight) -> None:
        scheme = weight.scheme
        if scheme.kind == "fp8" or not scheme.positive:
            raise ValueError(f"{scheme.name}: codes are not two's complement")
        super().__init__(weight.lead, weight.row_multiple)
        self.plain = weight.codes
        self._evaluation = weight
        self._upper = np.uint8(0x88 if scheme.bits == 4 else 0x80)
        self.outputs = (
            Output(self, 0, ir.DataType.UINT8, (*weight.lead, weight.k * scheme.bits // 8)),
            Output(self, 1, weight.scales.dtype, weight.scales.dims),
        )

    def evaluate(self, region: Region) -> tuple[np.ndarray, ...]:
        """What the weight has of the region, with the upper bit of every code flipped."""
        codes, scales = self._evaluation.evaluate(region)
        return codes ^ self._upper, scales
