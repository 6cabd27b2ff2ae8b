"""RoPE's frequencies, and the scalings that stretch them over longer texts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from l4export.model.config_fields import Fields, show

__all__ = ["LinearScaling", "Llama3Scaling", "RopeScaling", "YarnScaling", "frequencies", "read_scaling"]


@dataclass(frozen=True)
class LinearScaling:
    """Every frequency is divided by `factor`."""

    rope_type: Literal["linear"] = field(default="linear", init=False)
    factor: float

    def scaled(self, freq: NDArray[np.float64], theta: float) -> NDArray[np.float64]:
        """Frequencies float64 [d/2] of base `theta`, scaled."""
        return freq / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """The scaling of Llama 3.1 [transformers, modeling_rope_utils.py; Meta, llama-models].

    f is divided by `factor` where its wavelength 2π/f exceeds original / low_freq_factor, kept where it is below
    original / high_freq_factor, and between them becomes f · ((1 - s) / factor + s) with
    s = (original / wavelength - low) / (high - low).
    """

    rope_type: Literal["llama3"] = field(default="llama3", init=False)
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def scaled(self, freq: NDArray[np.float64], theta: float) -> NDArray[np.float64]:
        """Frequencies float64 [d/2] of base `theta`, scaled."""
        low, high = self.low_freq_factor, self.high_freq_factor
        turns = self.original_max_position_embeddings * freq / (2 * math.pi)  # original / wavelength
        # Scout ships low == high: there is no middle band, only a step.
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0) if high > low else (turns >= low).astype(np.float64)
        return freq * ((1 - smooth) / self.factor + smooth)


@dataclass(frozen=True)
class YarnScaling:
    """YaRN [Peng et al. 2023, arXiv:2309.00071], as transformers computes it.

    The first of the d/2 frequencies keep their value, the last are divided by `factor`, and a linear ramp lies between
    the two that turn `beta_fast` and `beta_slow` times within the original context. The ramp's ends are whole numbers
    with `truncate`. Rotated queries and keys are multiplied by `attention_factor`.
    """

    rope_type: Literal["yarn"] = field(default="yarn", init=False)
    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int
    truncate: bool

    def scaled(self, freq: NDArray[np.float64], theta: float) -> NDArray[np.float64]:
        """Frequencies float64 [d/2] of base `theta`, which is not 1, scaled."""
        dim = 2 * len(freq)

        def index(turns: float) -> float:
            return dim * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        high += 0.001 if low == high else 0
        ramp = np.clip((np.arange(len(freq)) - low) / (high - low), 0.0, 1.0)
        scale: NDArray[np.float64] = ramp / self.factor + 1 - ramp
        return freq * scale


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


def frequencies(theta: float, head_dim: int, scaling: RopeScaling | None) -> NDArray[np.float64]:
    """RoPE's inverse frequencies, radians per position: float64 [head_dim / 2].

    f_i = theta^(-2i/d) [Su et al. 2021, arXiv:2104.09864], scaled.
    """
    freq: NDArray[np.float64] = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return freq if scaling is None else scaling.scaled(freq, theta)


def read_scaling(rope: Fields) -> RopeScaling:
    """The scaling that an object with a `rope_type` and its parameters describes.

    Raises:
        InputError: another type, or a parameter that is missing or out of range.
    """
    kind = rope.value("rope_type", None)
    factor = rope.number("factor", 0.0) if kind in ("linear", "llama3", "yarn") else 0.0
    if kind == "linear":
        return LinearScaling(factor)
    original = rope.value("original_max_position_embeddings", None)
    if kind == "llama3":
        return Llama3Scaling(
            factor=factor,
            low_freq_factor=rope.number("low_freq_factor", 0.0),
            high_freq_factor=rope.number("high_freq_factor", 0.0),
            original_max_position_embeddings=rope.typed("original_max_position_embeddings", original, int, 1, 2**40),
        )
    if kind == "yarn":
        return YarnScaling(
            factor=factor,
            attention_factor=rope.number("attention_factor", 0.0),
            beta_fast=rope.number("beta_fast", 0.0),
            beta_slow=rope.number("beta_slow", 0.0),
            original_max_position_embeddings=rope.typed("original_max_position_embeddings", original, int, 1, 2**40),
            truncate=rope.typed("truncate", rope.value("truncate", None), bool),
        )
    raise rope.refuse("rope_type", f"is {show(kind)}; expected linear, llama3 or yarn")
