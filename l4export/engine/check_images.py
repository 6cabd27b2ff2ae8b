"""Images in what a check graph is fed: three of a few feature rows each, so that features are merged on the device too.

One stands in the middle of the first call, where a chunk ends if one does, one before it, and one in the second call.
"""

from __future__ import annotations

import dataclasses

from l4export.engine.manifest_types import CheckGraph, Manifest
from l4export.model.vision_config import VisionConfig

__all__ = ["image_starts", "small_tiles"]

_SIDE = 2


def small_tiles(vision: VisionConfig) -> VisionConfig:
    """A tower's config with tiles of 2 x 2 rows of features, a pixel a patch: a decoder takes any number of rows."""
    return dataclasses.replace(vision, image_size=_SIDE * vision.block, patch_size=1)


def image_starts(check: CheckGraph, manifest: Manifest) -> list[int]:
    """Where, among the tokens of a check, the features of each image begin; nowhere without a tower, or without room.

    `manifest` is that of the check's decoder (`l4export.engine.check_decoder`).
    """
    if manifest.vision is None:
        return []
    rows, many = manifest.vision.rows_per_tile, check.calls[0]
    middle = many // 2 - rows // 2
    starts = [2, middle] if middle > 2 + rows and many >= middle + rows + 2 else []
    return [*starts, *([many + 1] if check.calls[1:] and check.calls[1] >= rows + 2 else [])]
