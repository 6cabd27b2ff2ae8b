"""What an append is given: token ids and images of every row, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest
from l4export.errors import InputError
from l4export.model.vision_config import VisionConfig
from l4export.runtimes.arguments import is_sequence, rows_of_ids, shown
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.session_state import PlacedImage, SessionState

__all__ = ["Images", "NewTokens", "TokenIds", "checked_images", "checked_tokens"]

TokenIds = Sequence[int] | Sequence[Sequence[int]] | Sequence[NDArray[Any]] | NDArray[Any]

Images = ProcessedImages | Sequence[ProcessedImages | None] | None
"""Of one row, or of each row; None where there are none."""


@dataclass(frozen=True)
class NewTokens:
    """The tokens of an append.

    Attributes:
        rows: int64 [n] of each row.
        images: Of each row; None where it has none.
        placed: Where these images then stand in each row.
    """

    rows: list[NDArray[np.int64]]
    images: list[ProcessedImages | None]
    placed: list[tuple[PlacedImage, ...]]


def checked_tokens(token_ids: TokenIds, state: SessionState, manifest: Manifest) -> list[NDArray[np.int64]]:
    """The new tokens of each row, int64 [n].

    Raises:
        InputError: they are no ids of tokens, are none at all, are those of another number of rows, or are more than
            there is room for.
    """
    rows = rows_of_ids(token_ids)
    if len(rows) != len(state.lengths):
        raise InputError(
            f"{len(rows)} rows of token ids for a session of {len(state.lengths)}: give one sequence a row"
        )
    if not any(row.size for row in rows):
        raise InputError("no token ids to append: give at least one")
    for index, row in enumerate(rows):
        _check_row(index, row, state, manifest)
    return [row.astype(np.int64) for row in rows]


def checked_images(
    rows: list[NDArray[np.int64]], images: Images, state: SessionState, vision: VisionConfig | None
) -> NewTokens:
    """The tokens with the images that they show; `vision` is the tower, None where there is none.

    Raises:
        InputError: images where there is no tower, of another engine or of another number of rows; or, with a tower,
            image tokens in another number than that of the images' feature rows, which is 0 without images.
    """
    given = _given(images, len(rows))
    pairs = zip(rows, given, strict=True)
    placed = [_placed(index, ids, seen, int(state.lengths[index]), vision) for index, (ids, seen) in enumerate(pairs)]
    return NewTokens(rows, given, placed)


def _given(images: object, batch: int) -> list[ProcessedImages | None]:
    """The images of each row; of no row those that are empty."""
    if images is None:
        return [None] * batch
    each = [images] if isinstance(images, ProcessedImages) else images
    if not is_sequence(each) or not all(item is None or isinstance(item, ProcessedImages) for item in each):  # type: ignore[attr-defined]
        raise InputError(f"images is {shown(images)}: give what an ImageProcessor makes, or that or None for each row")
    items: list[ProcessedImages | None] = list(each)  # type: ignore[call-overload]
    if len(items) != batch:
        raise InputError(f"images of {len(items)} rows for a session of {batch}: give those of each row, or None")
    return [item or None for item in items]


def _placed(
    index: int, ids: NDArray[np.int64], images: ProcessedImages | None, length: int, vision: VisionConfig | None
) -> tuple[PlacedImage, ...]:
    """Where a row's images will stand behind the `length` tokens that it has."""
    if vision is None:
        if images is not None:
            raise InputError(
                f"row {index}: has images, and this engine sees none; build one from a checkpoint that does"
            )
        return ()
    where = np.flatnonzero(ids == vision.image_token_id)
    if images is None:
        if len(where):
            raise InputError(
                f"row {index}: has {len(where)} image tokens ({vision.image_token_id}) and no images; give both or none"
            )
        return ()
    made, taken = (images.tiles.shape[2:], images.rows_of_a_tile), ((vision.image_size,) * 2, vision.rows_per_tile)
    if made != taken:
        raise InputError(
            f"row {index}: its images have tiles of {made[0][0]} pixels and {made[1]} rows, and this engine takes "
            f"{taken[0][0]} and {taken[1]}; make them with ImageProcessor.open of the engine"
        )
    if len(where) != sum(images.feature_rows):
        raise InputError(
            f"row {index}: has {len(where)} image tokens ({vision.image_token_id}) and {len(images)} images of "
            f"{sum(images.feature_rows)} feature rows; expand the prompt with the grids of these images"
        )
    ends, where = np.cumsum(images.feature_rows), where + length
    return tuple(
        PlacedImage(int(where[end - count]), int(where[end - 1]) + 1, digest)
        for end, count, digest in zip(ends, images.feature_rows, images.digests, strict=True)
    )


def _check_row(index: int, row: NDArray[Any], state: SessionState, manifest: Manifest) -> None:
    """Whether the ids are those of tokens, and whether there is room for them."""
    vocab, limit = manifest.model.vocab_size, manifest.max_context
    if row.size and (row.min() < 0 or row.max() >= vocab):
        bad = row[(row < 0) | (row >= vocab)][0]
        raise InputError(f"row {index}: token id {shown(bad)} is outside the vocabulary (0 to {vocab - 1})")
    if state.lengths[index] + row.size > state.capacity:
        raise InputError(
            f"row {index}: {state.lengths[index]} + {row.size} tokens are more than the session's capacity of "
            f"{state.capacity}; shorten the prompt or build with a larger --max-context"
        )
    if state.ends[index] + row.size > limit:
        raise InputError(
            f"row {index}: {row.size} tokens from position {state.ends[index]} on go beyond the engine's "
            f"context of {limit}; shorten the prompt or build with a larger --max-context"
        )
