"""How weights are stored in fewer bits: the formulas, element types and packings of every scheme.

Throughout, a weight matrix is `[N, K]`: N output features, K input features; a matrix multiplication sums over K.
All arithmetic is IEEE float32, rounded to nearest even after each operation, unless a formula says float64.
`round` is to the nearest integer, ties to even. A scale whose magnitude is below 2^-126 (float32 subnormal, or zero)
becomes +0.0, so engines that flush subnormals agree with those that do not; then `inverse` is 0 as well. Otherwise
`inverse = 1 / scale`. With `scale_dtype=float16` the scale is rounded to float16 first (float16 subnormals are kept),
and everything below uses the rounded scale; a scale that float16 cannot hold (|scale| >= 65520) is an error.

**int4, int8, symmetric.** Blocks of `block_size` along K, b bits. `extreme` is the element of largest magnitude, with
its sign; of several with the same magnitude, the first.

    scale = extreme / -(2^(b-1))                                  (negative when the extreme is positive)
    code  = clip(round(w * inverse) + 2^(b-1), 0, 2^b - 1)
    w'    = (code - 2^(b-1)) * scale

With float32 scales the extreme gets code 0 and is reproduced exactly. A block with scale 0 has codes 2^(b-1).

**int4, int8, asymmetric.**

    lo = min(block, 0); hi = max(block, 0)
    scale      = float32((float64(hi) - float64(lo)) / (2^b - 1))
    zero_point = clip(round(-lo * inverse), 0, 2^b - 1)
    code       = clip(round(w * inverse) + zero_point, 0, 2^b - 1)
    w'         = (code - zero_point) * scale

A block with scale 0 has codes and zero point 0.

**int4, int8, positive.** Symmetric, for operators that want scales above zero and codes around zero (as TensorRT takes
the DequantizeLinear of standard ONNX). Codes are two's complement.

    scale = amax / (2^(b-1) - 1)
    code  = clip(round(w * inverse), -2^(b-1), 2^(b-1) - 1)
    w'    = code * scale

A block with scale 0 gets scale 1 and codes 0.

**int4, int8, fitted.** Any of the three above, with each block's scale replaced by the one of four fractions of it,

    s_f = scale * f,  f in (1, 0.93, 0.86, 0.79)                  (then rounded to float16 where scales are)

that makes `error = sum of (w - w')^2` least, in float32, element after element; of equal ones the first. Large weights
are clipped so that the others have finer steps.

**fp8 (E4M3FN).** Per output channel (one scale for each n), or per 128x128 block of [N, K], partial at the edges.

    scale = amax / 448
    code  = E4M3FN(clip(w * inverse, -448, 448))                  (nearest even; E4M3FN subnormals and -0 are kept)
    w'    = float32(code) * scale

A channel or block with scale 0 has codes +0 or -0; if positive, its scale is 1.

Packings (C order):

| array | int4 | int8 | fp8 |
|---|---|---|---|
| codes | uint8 [N, K/2], even k in the low nibble | uint8 [N, K] | 8-bit [N, K] |
| scales | [N, K/block] | [N, K/block] | [N, 1] or [ceil(N/128), ceil(K/128)] |
| zero points | uint8 [N, ceil(K/block / 2)], even block in the low nibble, padding 0 | uint8 [N, K/block] | none |

Only asymmetric schemes have zero points. MatMulNBits takes codes reshaped to [N, K/block, block*b/8]; QMoE takes them
as they are, one matrix for each expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

__all__ = ["BLOCK_SIZES", "FP8_BLOCK", "FP8_MAX", "Kind", "Scheme"]

Kind = Literal["int4", "int8", "fp8"]

BLOCK_SIZES = (16, 32, 64, 128)
"""Of the integer kinds."""

FP8_BLOCK = 128
"""Rows and columns of a square fp8 block."""

FP8_MAX = 448.0
"""Largest E4M3FN number."""


@dataclass(frozen=True)
class Scheme:
    """One way of storing a matrix; the formulas are in the module's text.

    `block_size` is 16, 32, 64 or 128 for the integer kinds; for fp8 it is 0 (one scale per output channel) or 128
    (one per 128x128 block). `symmetric` is always true for fp8. `scale_dtype` is float32 or float16. `positive` schemes
    are symmetric. `fitted` is for the integer kinds.
    """

    kind: Kind
    block_size: int
    symmetric: bool = True
    scale_dtype: Literal["float32", "float16"] = "float32"
    positive: bool = False
    fitted: bool = False

    def __post_init__(self) -> None:
        allowed = (0, FP8_BLOCK) if self.kind == "fp8" else BLOCK_SIZES
        if self.kind not in {"int4", "int8", "fp8"}:
            raise ValueError(f"unknown kind of quantisation {self.kind!r}: int4, int8 or fp8")
        if self.block_size not in allowed:
            raise ValueError(f"{self.kind} has no block size {self.block_size}: one of {', '.join(map(str, allowed))}")
        if self.kind == "fp8" and not self.symmetric:
            raise ValueError("fp8 is symmetric")
        if self.positive and not self.symmetric:
            raise ValueError("a scheme with zero points is not positive")
        if self.fitted and self.kind == "fp8":
            raise ValueError("fp8 scales are not fitted")
        if self.scale_dtype not in {"float32", "float16"}:
            raise ValueError(f"scales are float32 or float16, not {self.scale_dtype!r}")

    @property
    def name(self) -> str:
        """For people and manifests, unique: `int4-b32`, `int8-b128-asym-f16`, `int4-b64-fit`, `fp8-b128-pos`."""
        parts: list[str] = [self.kind, f"b{self.block_size}" if self.block_size else "channel"]
        if not self.symmetric:
            parts.append("asym")
        if self.scale_dtype == "float16":
            parts.append("f16")
        if self.positive:
            parts.append("pos")
        if self.fitted:
            parts.append("fit")
        return "-".join(parts)

    @classmethod
    def named(cls, name: str) -> Scheme:
        """The scheme whose `name` this is.

        Raises:
            ValueError: if there is none.
        """
        found = [scheme for scheme in _every_scheme() if scheme.name == name]
        if not found:
            raise ValueError(f"unknown quantisation scheme {name!r}: such as int4-b32, int8-b128-asym, fp8-channel")
        return found[0]

    @property
    def bits(self) -> int:
        """Of one code."""
        return 4 if self.kind == "int4" else 8

    @property
    def codes_dtype(self) -> np.dtype[Any]:
        """Element type of the packed codes."""
        return np.dtype(ml_dtypes.float8_e4m3fn if self.kind == "fp8" else np.uint8)

    def check(self, k: int) -> None:
        """Whether the blocks divide rows of `k` elements.

        Raises:
            ValueError: if they do not (fp8 has partial blocks: every `k` will do).
        """
        if self.kind != "fp8" and k % self.block_size:
            raise ValueError(f"block size {self.block_size} does not divide the {k} input features")

    def codes_shape(self, n: int, k: int) -> tuple[int, int]:
        """Of the packed codes of an `[n, k]` matrix."""
        self.check(k)
        return n, k * self.bits // 8

    def scales_shape(self, n: int, k: int) -> tuple[int, int]:
        """Of its scales."""
        self.check(k)
        if self.kind != "fp8":
            return n, k // self.block_size
        return (-(-n // FP8_BLOCK), -(-k // FP8_BLOCK)) if self.block_size else (n, 1)

    def zero_points_shape(self, n: int, k: int) -> tuple[int, int] | None:
        """Of its packed zero points; None when the scheme has none."""
        self.check(k)
        return None if self.symmetric else (n, -(-(k // self.block_size) * self.bits // 8))

    def allocate(self, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Uninitialised codes, scales and zero points for an `[n, k]` matrix."""
        zero_points = self.zero_points_shape(n, k)
        return (
            np.empty(self.codes_shape(n, k), self.codes_dtype),
            np.empty(self.scales_shape(n, k), self.scale_dtype),
            None if zero_points is None else np.empty(zero_points, np.uint8),
        )


def _every_scheme() -> list[Scheme]:
    dtypes: tuple[Literal["float32", "float16"], ...] = ("float32", "float16")
    integers: tuple[Kind, ...] = ("int4", "int8")
    kinds: list[tuple[Kind, int]] = [(kind, block) for kind in integers for block in BLOCK_SIZES] + [
        ("fp8", 0),
        ("fp8", FP8_BLOCK),
    ]
    rules = [(True, False), (False, False), (True, True)]
    return [
        Scheme(kind, block, symmetric, dtype, positive, fitted)
        for kind, block in kinds
        for symmetric, positive in rules
        for dtype in dtypes
        for fitted in (False, True)
        if kind != "fp8" or (symmetric and not fitted)
    ]
