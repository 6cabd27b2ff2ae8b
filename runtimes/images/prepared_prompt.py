"""Messages and images into what an engine is fed: expanded ids, and tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l4export.errors import InputError
from l4export.model.vision_config import VisionConfig
from l4export.runtimes.images.processor import ImageProcessor, ProcessedImages
from l4export.runtimes.images.prompt import ImageTokens, expand_images
from l4export.runtimes.text.codec import TextCodec

__all__ = ["place_images"]


def place_images(
    directory: Path,
    vision: VisionConfig | None,
    codec: TextCodec,
    ids: Sequence[int],
    images: Sequence[Any],
    max_tiles: int | None = None,
) -> tuple[list[int], ProcessedImages | None]:
    """Put images where a prompt has placeholders: the expanded ids, and the images if there are any.

    Args:
        directory: An engine's, or a checkpoint's.
        vision: Its vision tower; None where it has none.
        codec: Its tokenizer.
        ids: With a placeholder `<|image|>` for each image.
        images: What an `ImageProcessor` takes.
        max_tiles: The most tiles of an image; None: as the checkpoint says.

    Raises:
        InputError: images for an engine that sees none, other numbers of placeholders and images, tokens in the prompt
            that only images have, or what is no image.
        EnvironmentLacks: the package Pillow is missing.
        StorageError: a file cannot be read.
    """
    if vision is None:
        if images:
            raise InputError(f"{directory}: sees no images; build it from a checkpoint with a vision tower")
        return list(ids), None
    if not images and codec.tokenizer.token_to_id("<|image|>") is None:  # nothing can be spelled, either
        return list(ids), None
    tokens = ImageTokens.of(codec.tokenizer, vision.rows_per_tile, vision.image_token_id)
    if not images:
        return expand_images(ids, (), tokens), None
    processed = ImageProcessor.open(directory)(images, max_tiles)
    return expand_images(ids, processed.grids, tokens), processed
