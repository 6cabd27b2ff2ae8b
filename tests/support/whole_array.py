"""An array as a stored weight."""

from __future__ import annotations

import numpy as np

from l4export.checkpoint.stored_weight import ComputedWeight


class WholeArray(ComputedWeight):
    """Holds every reader to regions that are in bounds and of step 1."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__("w", values.shape, values.dtype, [])
        self.values = values

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """The region."""
        for cut, size in zip(region, self.shape, strict=True):
            assert 0 <= cut.start <= cut.stop <= size and cut.step is None
        return self.values[region]
