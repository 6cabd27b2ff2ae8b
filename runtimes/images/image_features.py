"""Features of images: computed once an image, and kept for the next prompt that shows it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError, L4Error, one_line
from l4export.runtimes.images.processor import ProcessedImages

__all__ = ["ImageFeatures"]

MOST_BYTES = 512 << 20
"""What an engine keeps: 10 images of 17 tiles of Llama 4 in float32, which take 50 MB each."""


class ImageFeatures:
    """An engine's vision tower with a memory of what it has seen; shared by sessions and threads.

    When there is more than `most_bytes`, the images that were asked for the longest time ago are forgotten.

    Args:
        compute: The tower: tiles float32 [tiles, 3, T, T] to rows [rows, D].
        most_bytes: Of the features that are kept.

    Attributes:
        seconds: For which the tower has computed, all calls together.
    """

    def __init__(self, compute: Callable[[NDArray[np.float32]], NDArray[Any]], most_bytes: int = MOST_BYTES) -> None:
        self.seconds = 0.0
        self._compute = compute
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()  # of the memory alone: threads compute side by side

    def of(self, images: ProcessedImages) -> list[NDArray[Any]]:
        """The rows [feature_rows, D] of each image, read only.

        Raises:
            InputError: the tower does not take the tiles, or gives another number of rows for them.
        """
        return [self._one(images, index) for index in range(len(images))]

    def forget(self) -> None:
        """Forget all images."""
        with self._lock:
            self._kept.clear()

    def _one(self, images: ProcessedImages, index: int) -> NDArray[Any]:
        digest, due = images.digests[index], images.feature_rows[index]
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
        began = time.monotonic()
        try:
            rows = self._compute(images.tiles_of(index))
        except L4Error:
            raise
        except Exception as error:
            raise InputError(f"image {index + 1}: the tower refused it: {one_line(error, MemoryError)}") from error
        if len(rows) != due:
            raise InputError(f"image {index + 1}: the tower gives {len(rows)} rows for {due} tokens; build it again")
        rows.flags.writeable = False
        with self._lock:
            self.seconds += time.monotonic() - began
            self._kept[digest] = rows
            while sum(array.nbytes for array in self._kept.values()) > self._most_bytes:
                self._kept.popitem(last=False)
        return rows
