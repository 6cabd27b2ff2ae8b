"""Where the codes of a weight come from, if not from rounding it: what a calibration offers to a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from l4export.quantization.schemes import Scheme
from l4export.weights.recipes import Recipe

__all__ = ["CodesSource"]


class CodesSource(Protocol):
    """Finds codes before the weights are written; a pass plans with them."""

    def takes(self, name: str, scheme: Scheme) -> bool:
        """Whether it finds this weight's codes."""

    def add(self, name: str, shape: tuple[int, ...], scheme: Scheme) -> Sequence[Recipe]:
        """Plan a weight; its codes, scales and zero points as lazy tensors."""

    def add_router(self, name: str, shape: tuple[int, ...]) -> Recipe:
        """Plan a router; its weights as a lazy tensor."""
