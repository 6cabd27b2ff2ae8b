"""The decoder's input of features, and the rows that wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest
from l4export.runtimes.cache.kv_cache import numpy_dtype

__all__ = ["FeatureInput", "FeatureRows"]


@dataclass(frozen=True)
class FeatureInput:
    """The decoder's input `image_features`: one row for each image token of the call.

    Attributes:
        token: The id of image tokens.
        none: No rows: an array [0, D] in the dtype that the decoder takes.
    """

    token: int
    none: NDArray[Any]

    @classmethod
    def of(cls, manifest: Manifest) -> FeatureInput | None:
        """An engine's; None where it sees no images."""
        if manifest.vision is None:
            return None
        taken = next((value for value in manifest.decoder.inputs if value.name == "image_features"), None)
        if taken is None:
            return None
        return cls(manifest.vision.image_token_id, np.zeros((0, int(taken.shape[1])), numpy_dtype(taken.dtype)))


class FeatureRows:
    """The features of one row's new images, handed out from the first on as its image tokens are fed."""

    def __init__(self, images: Sequence[NDArray[Any]]) -> None:
        self._images = list(images)

    def take(self, count: int) -> list[NDArray[Any]]:
        """The next `count` rows, as views [n, D]; there must be as many."""
        taken: list[NDArray[Any]] = []
        while count:
            first = self._images[0]
            taken.append(first[:count])
            self._images[:1] = [first[count:]] if len(first) > count else []
            count -= len(taken[-1])
        return taken
