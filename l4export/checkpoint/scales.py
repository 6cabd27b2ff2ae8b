"""Codes times scales, where scales must be numbers that a rounding can have made."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import Index
from l4export.errors import InputError

__all__ = ["damaged", "decode", "multiply", "read_scales"]

_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_FP8_NUMBERS = np.arange(256, dtype=np.uint8).view(_FP8).astype(np.float32)


def damaged(tensor: SourceTensor, problem: str) -> InputError:
    """The error, to be raised, for a tensor whose values cannot be right."""
    return InputError(
        f"{tensor.file.path}: tensor {tensor.name!r} {problem}; download or quantise the checkpoint again"
    )


def decode(codes: np.ndarray, out: np.ndarray) -> None:
    """Write the numbers that codes are, FP8 or int8, to `out` in float32."""
    if codes.dtype == _FP8:
        np.take(_FP8_NUMBERS, codes.view(np.uint8), out=out, mode="clip")  # four times as fast as a conversion
    else:
        out[...] = codes


def read_scales(tensor: SourceTensor, index: Index = ()) -> np.ndarray:
    """The scales `tensor[index]` in float32.

    Raises:
        InputError: one is NaN, infinite or negative.
    """
    scales = tensor.read(index).astype(np.float32)
    if not (good := np.isfinite(scales) & (scales >= 0)).all():
        raise damaged(tensor, f"has a scale of {float(scales[~good].flat[0])}")
    return scales


def multiply(codes: np.ndarray, scales: np.ndarray, tensor: SourceTensor) -> None:
    """`codes *= scales` in float32; scales come from `tensor`, and have as many dimensions.

    Raises:
        InputError: a scale is 0 where a code is not: what was rounded is lost.
    """
    if (scales == 0).any() and np.any((scales == 0) & (codes != 0)):
        raise damaged(tensor, "has a scale of 0 for codes that are not 0")
    with np.errstate(over="ignore"):  # whoever reads a weight that is not finite says so
        np.multiply(codes, scales, out=codes)
