"""Prompts with images for a comparison: random text around the pictures that are given, or around seeded ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.runtimes.arguments import is_sequence, shown
from l4export.runtimes.images.decoding import ImageSource, decode
from l4export.runtimes.images.processor import ImageProcessor, ProcessedImages
from l4export.runtimes.images.prompt import ImageTokens, expand_images
from l4export.runtimes.text.codec import TextCodec

if TYPE_CHECKING:
    from l4export.engine.described import Described
    from l4export.model.vision_config import VisionConfig

__all__ = ["ImagePrompt", "Pictures", "are_given", "image_prompt", "seeded_pictures"]

Pictures = Sequence[ImageSource] | Literal["seeded"]
"""Images as an image processor takes them, or "seeded": three pictures that the seed makes."""

_SEEDED_GRIDS = ((1, 1), (1, 2), (2, 3))


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """A prompt with images, and the text that follows it.

    Attributes:
        pictures: The images as they are seen, uint8 [H, W, 3].
        images: What the engine's processor makes of them.
        tokens: Which tokens images consist of.
        written: Ids of the prompt as it is written, with a placeholder for each image.
        ids: int64 [T], the same with the tokens of the images, and the text that follows.
        remark: Why the tokens around tiles are no tokenizer's; None where they are.
        codec: The engine's tokenizer; None where it has none.
    """

    pictures: tuple[NDArray[np.uint8], ...]
    images: ProcessedImages
    tokens: ImageTokens
    written: tuple[int, ...]
    ids: NDArray[np.int64]
    remark: str | None
    codec: TextCodec | None


def are_given(pictures: Pictures) -> bool:
    """Whether there are any images.

    Raises:
        InputError: they are neither a sequence nor "seeded".
    """
    if isinstance(pictures, str) and pictures == "seeded":
        return True
    if isinstance(pictures, np.ndarray) or not is_sequence(pictures):
        raise InputError(f"images is {shown(pictures)}: give a sequence of images, or 'seeded'")
    return len(pictures) > 0


def seeded_pictures(tile: int, seed: int) -> list[NDArray[np.uint8]]:
    """Pictures that take one tile, two, and two rows of three, of sides that are no multiples of a tile's.

    Noise over a slope: no two tiles are alike, and a row that is one pixel off shows.
    """
    rng = np.random.default_rng(seed)
    found = []
    for rows, columns in _SEEDED_GRIDS:
        height, width = (int(rng.integers((n - 1) * tile + tile // 2, n * tile)) for n in (rows, columns))
        slope = np.linspace(0, 199, width)[None, :, None] * np.linspace(0.3, 1, height)[:, None, None]
        found.append((slope + rng.integers(0, 56, (height, width, 3))).astype(np.uint8))
    return found


def image_prompt(
    engine: Path, manifest: Described, pictures: Pictures, text: int, following: int, seed: int
) -> ImagePrompt:
    """Make a prompt for an engine: `text` random tokens with all pictures at random places between them.

    Images go through the processor whose settings the engine carries. An engine without a tokenizer for images gets
    random tokens where separators and marks of images stand: a decoder takes them as any others.

    Raises:
        InputError: an engine without a vision tower or image processor, something that is no image, or more tokens than
            the engine's context.
        EnvironmentLacks: the package Pillow is missing.
        StorageError: an image cannot be read.
    """
    vision, vocab = manifest.vision, manifest.model.vocab_size
    if vision is None:
        raise InputError(f"{engine}: sees no images; build it from a checkpoint with a vision tower")
    processor = ImageProcessor.open(engine)
    settings = processor.settings
    if (settings.tile, settings.rows_of_a_tile) != (vision.image_size, vision.rows_per_tile):
        raise InputError(
            f"{engine}: its image processor makes tiles of {settings.tile} pixels and "
            f"{settings.rows_of_a_tile} tokens, its vision tower takes {vision.image_size} and {vision.rows_per_tile}; "
            "copy both from one checkpoint"
        )
    sources = seeded_pictures(settings.tile, seed) if isinstance(pictures, str) else list(pictures)
    decoded = tuple(decode(source, f"image {number}") for number, source in enumerate(sources, 1))
    images, rng, codec = processor(decoded), np.random.default_rng(seed), TextCodec.open(engine)
    tokens, remark = _tokens(codec, vision, vocab, rng)
    special = [tokens.image, tokens.start, tokens.end, tokens.patch, tokens.column, tokens.row]
    ordinary = np.setdiff1d(np.arange(vocab), special)
    written = rng.choice(ordinary, text).tolist()
    for place in sorted(rng.integers(0, text + 1, len(images)).tolist(), reverse=True):
        written.insert(place, tokens.image)
    prompt = expand_images(written, images.grids, tokens)
    _check_room(manifest, len(prompt), text, following)
    ids = np.asarray([*prompt, *rng.choice(ordinary, following)], np.int64)
    return ImagePrompt(decoded, images, tokens, tuple(written), ids, remark, codec)


def _tokens(
    codec: TextCodec | None, vision: VisionConfig, vocab: int, rng: np.random.Generator
) -> tuple[ImageTokens, str | None]:
    """The tokens of images, and why they are no tokenizer's."""
    if codec is not None and codec.tokenizer.token_to_id("<|patch|>") is not None:
        return ImageTokens.of(codec.tokenizer, vision.rows_per_tile, vision.image_token_id), None
    others = np.setdiff1d(np.arange(vocab), [vision.image_token_id])
    image, start, end, column, row = rng.choice(others, 5, replace=False).tolist()
    tokens = ImageTokens(image, start, end, vision.image_token_id, column, row, vision.rows_per_tile)
    return tokens, "the engine has no tokenizer with the tokens of images; those around tiles are random"


def _check_room(manifest: Described, prompt: int, text: int, following: int) -> None:
    if prompt + following > manifest.max_context:
        raise InputError(
            f"--prefill {text} --decode {following} and {prompt - text} tokens of images are more than the engine's "
            f"max_context of {manifest.max_context}; give fewer or smaller images, or build with a larger --max-context"
        )
