"""Routed experts as transformers' fbgemm_fp8 stores them: the tensors of transformers in FP8, with scales beside them.

Beside the codes [experts, in, out] stands a float for every output channel, `experts.gate_up_proj_scale`
[experts, 1, out] or `experts.down_proj_scale` [experts, out, 1] (transformers, `integrations/fbgemm_fp8.py`). A weight
is code times scale.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from l4export.checkpoint.matrix_codes import Computed, MatrixCodes, check_codes, check_products
from l4export.checkpoint.quantization_scheme import FP8_CHANNELS, Scheme
from l4export.checkpoint.scales import decode, multiply, read_scales
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import ComputedWeight
from l4export.errors import InputError
from l4export.weights.coded_data import CodeFormat

__all__ = ["FP8Experts", "find_fp8_experts"]

_BATCH = 2**20  # elements that are computed at a time


def find_fp8_experts(
    name: str, shape: tuple[int, ...], tensors: Mapping[str, SourceTensor], schemes: Sequence[Scheme]
) -> FP8Experts | None:
    """The experts `name`, [experts, in, out], if they are there in FP8; None where they are not.

    Raises:
        InputError: codes of another shape, scales that are missing or of another shape, or none of the schemes is it.
    """
    codes = tensors.get(name)
    if codes is None or codes.entry.dtype != "F8_E4M3" or not name.endswith((".gate_up_proj", ".down_proj")):
        return None
    if FP8_CHANNELS not in schemes:
        raise InputError(
            f"{codes.file.path}: tensor {name!r} is in FP8, which config.json has no quantization_config for; take the "
            "config.json that belongs to it"
        )
    experts, _, out = shape
    scales = tensors.get(f"{name}_scale")
    scale_shape = (experts, out, 1) if name.endswith(".down_proj") else (experts, 1, out)
    for each, tensor, wanted in ((name, codes, tuple(shape)), (f"{name}_scale", scales, scale_shape)):
        if tensor is None or tensor.shape != wanted:
            found = "is missing" if tensor is None else f"has shape {list(tensor.shape)}"
            raise InputError(
                f"{codes.file.path}: tensor {each!r} {found}, expected {list(wanted)} of experts in FP8; config.json "
                "and the weights do not match"
            )
    assert scales is not None
    _ = scales.dtype  # refuses what are no floats
    return FP8Experts(name, codes, scales)


class FP8Experts(ComputedWeight):
    """Experts [experts, in, out] in float32, of FP8 codes and a scale for each expert's output channel."""

    def __init__(self, name: str, codes: SourceTensor, scales: SourceTensor) -> None:
        super().__init__(name, codes.shape, np.dtype(np.float32), [codes, scales], [str(FP8_CHANNELS)])
        self._codes, self._scales = codes, scales

    @functools.cached_property
    def coded(self) -> MatrixCodes:
        """The codes as they are stored, of matrices [experts, out, in]."""
        experts, k, n = self.shape
        parts = [self._codes, self._scales]
        return MatrixCodes(
            CodeFormat(bits=8, is_float=True, symmetric=True, columns=k, scale_dtype=self._scales.dtype),
            Computed(f"{self.name} codes", (experts, n, k), self._codes.stored_dtype, parts, self._matrices),
            Computed(f"{self.name} scales", (experts, n, 1), np.float32, parts, self._row_scales),
        )

    def _matrices(self, region: tuple[slice, ...]) -> np.ndarray:
        """The region of `CodedData.codes`."""
        experts, rows, columns = region
        return check_codes(self._codes.read((experts, columns, rows)), self._codes).transpose(0, 2, 1)

    def _row_scales(self, region: tuple[slice, ...]) -> np.ndarray:
        """The region of `CodedData.scales`. A scale of 0 belongs to weights that are 0, or it is refused."""
        experts, rows, _ = region
        scales = check_products(self._read_scales(experts, rows), 448, self._scales)
        if (scales == 0).any():
            self.compute((experts, slice(0, self.shape[1]), rows))
        return scales[:, :, None]

    def _read_scales(self, experts: slice, columns: slice) -> np.ndarray:
        """[experts, columns]."""
        of_columns = (columns, slice(None)) if self.name.endswith(".down_proj") else (slice(None), columns)
        return read_scales(self._scales, (experts, *of_columns)).reshape(experts.stop - experts.start, -1)

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """Codes times scales.

        Raises:
            InputError: a scale that is not finite or is negative, or is 0 where codes are not.
        """
        experts, rows, columns = region
        out = np.empty([cut.stop - cut.start for cut in region], np.float32)
        if not out.size:
            return out
        scales = self._read_scales(experts, columns)[:, None]
        batch = max(1, _BATCH // out.shape[2])
        for expert in range(len(out)):
            for start in range(0, out.shape[1], batch):
                piece = out[expert, start : start + batch]
                cut = slice(rows.start + start, rows.start + start + len(piece))
                decode(self._codes.read((experts.start + expert, cut, columns)), piece)
                multiply(piece, scales[expert], self._scales)
        return out
