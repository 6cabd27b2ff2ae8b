"""What stands at image tokens before the first layer: features of the checkpoint's own vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from l4export.checkpoint import Checkpoint
from l4export.reference.vision_tower import HFVisionTower
from l4export.runtimes.images.processor import ProcessedImages

__all__ = ["ImageRows", "TowerRows"]


@dataclass(frozen=True, eq=False)
class ImageRows:
    """The features of one sequence's images: `places` bool [T] has an image token for each of `rows` float32 [n, D]."""

    places: NDArray[np.bool_]
    rows: NDArray[np.float32]


class TowerRows:
    """Features by transformers' tower in float32, which is loaded when the first image is seen (3.5 GB of a released
    model) and freed with this object.

    Args:
        checkpoint: The one with the tower.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def of(self, ids: Sequence[int], images: ProcessedImages | None) -> ImageRows | None:
        """The features of the images that a sequence of ids shows, which has as many image tokens; None without images.

        Raises:
            InputError: the checkpoint has no tower that transformers takes.
        """
        if images is None:
            return None
        places = np.asarray(ids) == self._checkpoint.vision_config().image_token_id
        return ImageRows(places, self._tower.features(images.tiles))

    @cached_property
    def _tower(self) -> HFVisionTower:
        return HFVisionTower(self._checkpoint)
