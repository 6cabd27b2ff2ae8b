"""Stored weights that are codes times scales: the codes themselves, for whoever can keep them as they are.

A weight w of matrices [.., N, K], N output features and K inputs, is

    w[n, k] = (code[n, k] - zero_point[n, k // columns]) * scale[n, k // columns]

where unsigned codes of b bits stand for 0 with 2^(b-1) if there are no zero points, and FP8 codes are numbers. The
matrices of experts come first, [E, N, K], whatever the order of axes in which the checkpoint has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from l4export.weights.recipes import SourceData

__all__ = ["CodeFormat", "CodedData", "HasCodes"]


@dataclass(frozen=True)
class CodeFormat:
    """What codes are, and what shares a scale.

    Attributes:
        bits: Of a code.
        is_float: FP8 (E4M3) instead of integers.
        symmetric: Without zero points.
        columns: How many neighbouring columns of a row share a scale; the last ones may be fewer.
        scale_dtype: In which scales are stored; they are read as float32.
    """

    bits: int
    is_float: bool
    symmetric: bool
    columns: int
    scale_dtype: np.dtype[Any]


class CodedData(Protocol):
    """The codes of a weight of matrices [.., N, K], with a scale for each row and each `format.columns` columns."""

    @property
    def format(self) -> CodeFormat:
        """What they are."""

    @property
    def codes(self) -> SourceData:
        """uint8 [.., N, K * bits / 8], unsigned, of two that share a byte the first in its lower half; or FP8."""

    @property
    def scales(self) -> SourceData:
        """float32 [.., N, blocks]."""

    @property
    def zero_points(self) -> SourceData | None:
        """uint8 [.., N, blocks], unsigned as codes are; None for symmetric codes."""


@runtime_checkable
class HasCodes(Protocol):
    """A stored weight that may be codes times scales."""

    @property
    def coded(self) -> CodedData | None:
        """The codes; None where the weight is made of something else."""
