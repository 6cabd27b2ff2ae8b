"""What an engine predicts at some positions of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from l4export.reference.judged import Judged
    from l4export.reference.window import Window

__all__ = ["WindowLogits"]


class WindowLogits:
    """An engine that reads a window from its beginning, as far as it is asked.

    Logits are computed for the positions that are asked for, and of what lies between them for its last token alone: an
    image is in one call, and has more tokens than logits fit into memory.
    """

    def __init__(self, engine: Judged, window: Window) -> None:
        self._ids = np.asarray(window.ids)
        self._images = window.images()
        self._session = engine.session(capacity=len(self._ids))
        vision = engine.manifest.vision
        self._is_patch = self._ids == (-1 if vision is None else vision.image_token_id)
        self._read = 0
        self._shown = 0

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """The logits float32 [n, vocab] at ascending positions int64 [n] behind those of earlier calls."""
        runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
        rows = []
        for first, last in ((int(run[0]), int(run[-1])) for run in runs):
            if first > self._read:
                self._feed(first, last_only=True)
            rows.append(self._feed(last + 1))
        return np.concatenate(rows)

    def _feed(self, stop: int, last_only: bool = False) -> NDArray[np.float32]:
        """Read on up to position `stop`, with the images in between; the logits, float32 [n, vocab]."""
        start, self._read = self._read, stop
        images = None
        if self._images is not None and (rows := int(self._is_patch[start:stop].sum())):
            ends = np.cumsum(self._images.feature_rows[self._shown :]).tolist()
            first, self._shown = self._shown, self._shown + ends.index(rows) + 1
            images = self._images.part(first, self._shown)
        logits: NDArray[np.float32] = self._session.append(self._ids[start:stop], last_only=last_only, images=images)[0]
        return logits
