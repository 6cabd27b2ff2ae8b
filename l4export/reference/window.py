"""What models are compared on: one sequence of tokens, with its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l4export.runtimes.images.processor import ProcessedImages

__all__ = ["Window", "no_images"]


def no_images() -> None:
    """The images of a text."""


@dataclass(frozen=True, eq=False)
class Window:
    """One sequence of tokens that is read from its beginning.

    Attributes:
        ids: T token ids.
        positions: int64 [n], ascending and below T - 1: where the next token is predicted for a comparison.
        images: Makes the images that the ids show, None where there are none. They are made each time anew, because
            tiles take more memory than most else.
    """

    ids: Sequence[int]
    positions: NDArray[np.int64]
    images: Callable[[], ProcessedImages | None] = no_images
