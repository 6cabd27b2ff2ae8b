"""The interface through which a calibration gives a pass the codes of weights, instead of rounding to nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from l4export.quantization.schemes import Scheme
from l4export.weights.recipes import Recipe

__all__ = ["CodesSource"]


class CodesSource(Protocol):
    """Finds codes before the weights are written. A pass plans with lazy tensors of them."""

    def takes(self, name: str, scheme: Scheme) -> bool:
        """Return whether it finds the codes of this weight."""

    def add(self, name: str, shape: tuple[int, ...], scheme: Scheme) -> Sequence[Recipe]:
        """Plan a weight of this shape, and return its codes, scales and zero points (if any) as lazy tensors.

        They are laid out as the checkpoint's tensor is, but narrower along K.
        """

    def add_router(self, name: str, shape: tuple[int, ...]) -> Recipe:
        """Plan a router of this shape, and return its weights as a lazy tensor."""
