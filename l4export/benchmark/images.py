"""What images cost an engine: its vision tower, and the first token of a prompt that shows some."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest
from l4export.errors import InputError
from l4export.runtimes.images.processor import ImageProcessor, ProcessedImages
from l4export.runtimes.images.prompt import ImageTokens
from l4export.runtimes.random_text import random_text

if TYPE_CHECKING:
    from l4export.runtimes.engine import Engine

__all__ = ["ImageReport", "TowerSpeed", "image_prompt", "measure_images"]

_SIDES = (1, 2, 4)
"""Tiles along a side of the pictures that the tower is measured on: the fewest tiles of an image, likely ones, and the
most with released settings (17, the global tile among them)."""

_SHOWN = 2
"""The same of the pictures in the prompt."""


@dataclass(frozen=True)
class TowerSpeed:
    """The tower on one image of `tiles` tiles, its global one among them: seconds, and rows of features a second."""

    tiles: int
    seconds: float
    features_per_second: float


@dataclass(frozen=True)
class ImageReport:
    """What images cost; times are in seconds, and medians.

    `count` images of `tiles` tiles each stand before the text of a prompt of `prompt_tokens` tokens, theirs among them.
    `first_token_seconds` is the time until its first token, the tower's work included, and
    `seen_first_token_seconds` the same when the engine still has the features. `text_first_token_seconds` is that of as
    many tokens of text alone. `tower` has the tower by itself for images of several sizes.
    """

    count: int
    tiles: int
    prompt_tokens: int
    tower: tuple[TowerSpeed, ...]
    first_token_seconds: float
    seen_first_token_seconds: float
    text_first_token_seconds: float


def image_prompt(
    directory: Path, manifest: Manifest, count: int, text: int
) -> tuple[NDArray[np.int64], ProcessedImages]:
    """Make a prompt of `count` different pictures and `text` random tokens behind them: ids int64 [T], and the images.

    Random tokens stand for separators and marks of images, too: a decoder takes them as any others.

    Raises:
        InputError: the engine has no tower or no image processor; the prompt is longer than its context.
        StorageError: the processor's settings cannot be read.
    """
    vision = manifest.vision
    if vision is None:
        raise InputError(f"--images: {directory} sees no images; build it from a checkpoint with a vision tower")
    processor = ImageProcessor.open(directory)
    (size,) = processor([_picture(processor, _SHOWN, 0)]).token_counts
    if text + count * size > manifest.max_context:
        raise InputError(
            f"--images {count}: of {size} tokens each, and --prefill {text}: together more than the engine's "
            f"max_context of {manifest.max_context}; ask for less or build with a larger --max-context"
        )
    images = processor([_picture(processor, _SHOWN, seed) for seed in range(count)])
    image, start, end, column, row = random_text(manifest, 5).tolist()
    tokens = ImageTokens(image, start, end, vision.image_token_id, column, row, images.rows_of_a_tile)
    shown = [token for grid in images.grids for token in tokens.block(grid)]
    return np.concatenate([np.asarray(shown, np.int64), random_text(manifest, text)]), images


def measure_images(
    engine: Engine, ids: NDArray[np.int64], images: ProcessedImages, repeats: int, say: Callable[[str], None]
) -> ImageReport:
    """Measure the tower on images of several sizes, and the prompt `ids` that shows `images`, `repeats` times each.

    Everything is run once before. `say` is called with a few words about what is done next.

    Raises:
        InputError: the engine's runtime has no tower, or it does not fit the image processor.
    """
    tower = tuple(_tower_speed(engine, seen, repeats, say) for seen in _sizes(engine.directory))
    session, text = engine.session(capacity=len(ids)), random_text(engine.manifest, len(ids))
    times: dict[str, list[float]] = {"new": [], "seen": [], "text": []}

    def first_token(tokens: NDArray[np.int64], shown: ProcessedImages | None) -> float:
        session.reset()
        began = time.perf_counter()
        session.append(tokens, last_only=True, images=shown).argmax()
        return time.perf_counter() - began

    for count in range(repeats + 1):
        say(f"measuring a prompt with images, {count} of {repeats}" if count else "warming up with images")
        engine.forget_images()
        measured = first_token(ids, images), first_token(ids, images), first_token(text, None)
        for name, seconds in zip(times, measured, strict=True):
            times[name] += [seconds] if count else []
    engine.forget_images()
    return ImageReport(len(images), images.tile_counts[0], len(ids), tower, *map(statistics.median, times.values()))


def _tower_speed(engine: Engine, image: ProcessedImages, repeats: int, say: Callable[[str], None]) -> TowerSpeed:
    """The tower on one image, each time anew."""
    features, (tiles,), (rows,) = engine.features, image.tile_counts, image.feature_rows
    if features is None:
        raise InputError(f"--images: the runtime of {engine.manifest.target} engines sees none; leave it out")
    times = []
    for count in range(repeats + 1):
        say(f"measuring the vision tower on {tiles} tiles, {count} of {repeats}" if count else "warming the tower up")
        features.forget()
        before = features.seconds
        features.of(image)
        times.append(features.seconds - before)
    seconds = statistics.median(times[1:])
    return TowerSpeed(tiles, seconds, rows / seconds)


def _sizes(directory: Path) -> list[ProcessedImages]:
    """An image of each size; one of fewer tiles than asked for where the settings allow no more, and none twice."""
    processor = ImageProcessor.open(directory)
    made = [processor([_picture(processor, side, 0)]) for side in _SIDES]
    return list({image.tile_counts: image for image in made}.values())


def _picture(processor: ImageProcessor, side: int, seed: int) -> NDArray[np.uint8]:
    """Noise on `side` x `side` tiles: uint8 [H, W, 3]."""
    pixels = side * processor.settings.tile
    return np.random.default_rng(seed).integers(0, 256, (pixels, pixels, 3), np.uint8)
