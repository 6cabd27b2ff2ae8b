"""How much of a prompt a row of a session holds already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from l4export.runtimes.cache.chunks import Chunks
from l4export.runtimes.session_state import PlacedImage, SessionState

__all__ = ["common_beginning"]


def common_beginning(
    state: SessionState, row: int, chunk: int | None, ids: NDArray[np.int64], images: Sequence[PlacedImage]
) -> int:
    """The most tokens with which a row and a prompt begin alike, and to which the row can go back; starts are 0.

    At least one token of the prompt is left, whose logits are needed. Images are alike where their pixels are, and are
    taken over whole. In layout `chunked` (`chunk` is its size) a row cannot go back into a chunk whose keys are gone,
    but to that chunk's beginning.
    """
    held = state.ids[row].ids
    most = min(len(held), len(ids) - 1)
    other = np.flatnonzero(held[:most] != ids[:most])
    count = int(other[0]) if len(other) else most
    count = min([count, *(image.start for image in set(images) ^ set(state.images[row]))])
    chunks = Chunks(chunk, state.starts, state.held)
    while True:
        image = next((image for image in images if image.start < count < image.stop), None)
        if image is not None:
            count = image.start
        elif not chunks.complete(row, count):
            count -= count % chunks.size
        else:
            return count
