"""Routed experts as transformers' fbgemm_fp8 stores them: the tensors of transformers in FP8, with scales beside them.

Beside the codes [experts, in, out] stands a float for every output channel, `experts.gate_up_proj_scale`
[experts, 1, out] or `experts.down_proj_scale` [experts, out, 1] (transformers, `integrations/fbgemm_fp8.py`). A weight
is code times scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from l4export.checkpoint.quantization_scheme import FP8_CHANNELS, Scheme
from l4export.checkpoint.scales import decode, multiply, read_scales
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import ComputedWeight
from l4export.errors import InputError

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

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """Codes times scales.

        Raises:
            InputError: a scale that is not finite or is negative, or is 0 where codes are not.
        """
        experts, rows, columns = region
        out = np.empty([cut.stop - cut.start for cut in region], np.float32)
        if not out.size:
            return out
        of_scales = (columns, slice(None)) if self.name.endswith(".down_proj") else (slice(None), columns)
        scales = read_scales(self._scales, (experts, *of_scales)).reshape(len(out), 1, -1)
        batch = max(1, _BATCH // out.shape[2])
        for expert in range(len(out)):
            for start in range(0, out.shape[1], batch):
                piece = out[expert, start : start + batch]
                cut = slice(rows.start + start, rows.start + start + len(piece))
                decode(self._codes.read((experts.start + expert, cut, columns)), piece)
                multiply(piece, scales[expert], self._scales)
        return out
