"""Where a session can go back to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.runtimes.cache.chunks import Chunks
from l4export.runtimes.session_state import SessionState

__all__ = ["rewound"]


def rewound(state: SessionState, counts: NDArray[np.int64], chunks: Chunks) -> SessionState:
    """The state without the last `counts` tokens, int64 [batch], of each row.

    Raises:
        InputError: a row has fewer tokens, would end within an image, or in a chunk whose keys are gone.
    """
    lengths = state.lengths - counts
    for row in range(len(counts)):
        _check(row, state, int(lengths[row]), chunks)
    pairs = zip(state.images, lengths.tolist(), strict=True)
    kept = tuple(tuple(image for image in images if image.stop <= length) for images, length in pairs)
    ids = tuple(history.cut(length) for history, length in zip(state.ids, lengths.tolist(), strict=True))
    return replace(state, lengths=lengths, images=kept, ids=ids)


def _check(row: int, state: SessionState, length: int, chunks: Chunks) -> None:
    had, start = int(state.lengths[row]), int(state.starts[row])
    if not 0 <= length <= had:
        raise InputError(f"row {row}: cannot go back {had - length} tokens, it has {had}")
    if image := next((image for image in state.images[row] if image.start < length < image.stop), None):
        raise InputError(
            f"row {row}: cannot go back to {length} tokens, in the middle of an image; go back to {image.start} or "
            f"{image.stop} tokens"
        )
    end = start + length
    if not chunks.complete(row, end):
        begin, size = end - end % chunks.size, chunks.size
        raise InputError(
            f"row {row}: cannot go back to position {end}, the keys of its chunk are gone; go back to position "
            f"{max(begin, start)} or {begin + size} and append from there"
        )
