"""How weights are stored in fewer bits: the formulas, element types and packings of every scheme.

Throughout, a weight matrix is `[N, K]`: N output features, K input features; a matrix multiplication sums over K.
All arithmetic is IEEE float32, rounded to nearest even after each operation, unless a formula says float64. `round`
rounds to the nearest integer, ties to even. A scale whose magnitude is below 2^-126 (float32 subnormal, or zero)
becomes +0.0, so engines that flush subnormals agree with those that do not. In that case `inverse` is 0 too. Otherwise
`inverse = 1 / scale`. With another `scale_dtype`, float16 or bfloat16, the scale is first rounded to that, to nearest
even (float16 subnormals are kept, those of bfloat16 are float32's), and everything below uses the rounded scale. A
scale that the type cannot hold (|scale| >= 65520 in float16, 2^128 - 2^119 in bfloat16) is an error.

**int4, int8, symmetric.** Blocks of `block_size` along K, b bits. `extreme` is the element of largest magnitude, with
its sign. If several have the same magnitude, it is the first of them.

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

**int4, int8, positive.** This is symmetric too. It is for operators that want positive scales and codes around zero, as
TensorRT does for the DequantizeLinear of standard ONNX. Codes are two's complement.

    scale = amax / (2^(b-1) - 1)
    code  = clip(round(w * inverse), -2^(b-1), 2^(b-1) - 1)
    w'    = code * scale

A block with scale 0 gets scale 1 and codes 0.

**int4, int8, fitted.** This is any of the three above with another scale for each block, one of four fractions

    s_f = scale * f,  f in (1, 0.93, 0.86, 0.79)                  (then rounded as scales are)

The fraction with the smallest `error = sum of (w - w')^2` is taken, and the first of equal ones. The error is summed in
float32, element after element. Large weights are clipped so that the others have finer steps.

**fp8 (E4M3FN).** There is one scale for each output channel n, or one for each 128x128 block of [N, K]. Blocks at the
edges may be smaller.

    scale = amax / 448
    code  = E4M3FN(clip(w * inverse, -448, 448))                  (nearest even; E4M3FN subnormals and -0 are kept)
    w'    = float32(code) * scale

A channel or block with scale 0 has codes +0 or -0. In a positive scheme its scale is 1 instead.

Packings (C order):

| array | int4 | int8 | fp8 |
|---|---|---|---|
| codes | uint8 [N, K/2], even k in the low nibble | uint8 [N, K] | 8-bit [N, K] |
| scales | [N, K/block] | [N, K/block] | [N, 1] or [ceil(N/128), ceil(K/128)] |
| zero points | uint8 [N, ceil(K/block / 2)], even block in the low nibble, padding 0 | uint8 [N, K/block] | none |

Only asymmetric schemes have zero points. MatMulNBits takes codes that are reshaped to [N, K/block, block*b/8]. QMoE
takes them as they are, one matrix for each expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

__all__ = ["BLOCK_SIZES", "FP8_BLOCK", "FP8_MAX", "Kind", "ScaleDtype", "Scheme"]

Kind = Literal["int4", "int8", "fp8"]
ScaleDtype = Literal["float32", "float16", "bfloat16"]

_SHORT: dict[ScaleDtype, str] = {"float32": "", "float16": "f16", "bfloat16": "bf16"}
"""What the name of a scheme says of its scales."""

BLOCK_SIZES = (16, 32, 64, 128)
"""The block sizes of the integer kinds."""

FP8_BLOCK = 128
"""The number of rows, and of columns, of a square fp8 block."""

FP8_MAX = 448.0
"""The largest E4M3FN number."""


@dataclass(frozen=True)
class Scheme:
    """One way of storing a matrix. The formulas are in the docstring of the module.

    `block_size` is 16, 32, 64 or 128 for the integer kinds. For fp8 it is 0 (one scale for each output channel) or 128
    (one for each 128x128 block). `symmetric` is always true for fp8. `scale_dtype` is float32, float16 or
    bfloat16. `positive` schemes are symmetric. Only the integer kinds can be `fitted`.

    Raises:
        ValueError: the fields do not go together.
    """

    kind: Kind
    block_size: int
    symmetric: bool = True
    scale_dtype: ScaleDtype = "float32"
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
        if self.scale_dtype not in _SHORT:
            raise ValueError(f"scales are {', '.join(_SHORT)}, not {self.scale_dtype!r}")

    @property
    def name(self) -> str:
        """A unique name for people and manifests: `int4-b32`, `int8-b128-asym-f16`, `int4-b64-fit`, `fp8-b128-pos`."""
        parts: list[str] = [self.kind, f"b{self.block_size}" if self.block_size else "channel"]
        if not self.symmetric:
            parts.append("asym")
        if self.scale_dtype != "float32":
            parts.append(_SHORT[self.scale_dtype])
        if self.positive:
            parts.append("pos")
        if self.fitted:
            parts.append("fit")
        return "-".join(parts)

    @classmethod
    def named(cls, name: str) -> Scheme:
        """Return the scheme with this `name`.

        Raises:
            ValueError: there is none.
        """
        found = [scheme for scheme in _every_scheme() if scheme.name == name]
        if not found:
            raise ValueError(f"unknown quantisation scheme {name!r}: such as int4-b32, int8-b128-asym, fp8-channel")
        return found[0]

    @property
    def bits(self) -> int:
        """The number of bits of one code."""
        return 4 if self.kind == "int4" else 8

    @property
    def codes_dtype(self) -> np.dtype[Any]:
        """The element type of the packed codes."""
        return np.dtype(ml_dtypes.float8_e4m3fn if self.kind == "fp8" else np.uint8)

    def check(self, k: int) -> None:
        """Check that the blocks divide rows of `k` elements.

        Raises:
            ValueError: they do not. This cannot happen with fp8, which has partial blocks.
        """
        if self.kind != "fp8" and k % self.block_size:
            raise ValueError(f"block size {self.block_size} does not divide the {k} input features")

    def codes_shape(self, n: int, k: int) -> tuple[int, int]:
        """Return the shape of the packed codes of an `[n, k]` matrix."""
        self.check(k)
        return n, k * self.bits // 8

    def scales_shape(self, n: int, k: int) -> tuple[int, int]:
        """Return the shape of the scales of an `[n, k]` matrix."""
        self.check(k)
        if self.kind != "fp8":
            return n, k // self.block_size
        return (-(-n // FP8_BLOCK), -(-k // FP8_BLOCK)) if self.block_size else (n, 1)

    def zero_points_shape(self, n: int, k: int) -> tuple[int, int] | None:
        """Return the shape of the packed zero points of an `[n, k]` matrix; None if the scheme has none."""
        self.check(k)
        return None if self.symmetric else (n, -(-(k // self.block_size) * self.bits // 8))

    def allocate(self, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return uninitialised codes, scales and zero points (None for symmetric schemes) for an `[n, k]` matrix."""
        zero_points = self.zero_points_shape(n, k)
        return (
            np.empty(self.codes_shape(n, k), self.codes_dtype),
            np.empty(self.scales_shape(n, k), self.scale_dtype),
            None if zero_points is None else np.empty(zero_points, np.uint8),
        )


def _every_scheme() -> list[Scheme]:
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
        for dtype in _SHORT
        for fitted in (False, True)
        if kind != "fp8" or (symmetric and not fitted)
    ]
