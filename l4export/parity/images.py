"""Whether an engine sees what transformers sees: ids, pixels, and the features of its vision tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import CheckFailed, EnvironmentLacks, InputError
from l4export.parity.image_prompt import ImagePrompt
from l4export.reference.image_processor import transformers_ids, transformers_tiles
from l4export.reference.of_engine import load_tower
from l4export.reports.verdict import missed
from l4export.runtimes.images.prompt import expand_images

if TYPE_CHECKING:
    from l4export.engine.described import Described
    from l4export.runtimes.images.image_features import ImageFeatures
    from l4export.runtimes.text.codec import TextCodec

__all__ = [
    "ImageComparison",
    "ProcessorComparison",
    "compare_features",
    "compare_images",
    "compare_processors",
    "compare_seen",
]


@dataclass(frozen=True)
class ProcessorComparison:
    """How far tiles and ids are from those of transformers' own processor, on the same pictures.

    `pixel_difference` is max |difference| of pixel values, infinite if the tiles are others. `ids_agreement` is the
    share of equal ids of a text with the same images, 0 if there are more or fewer. What could not be compared is None,
    and `not_compared` says why, by name.
    """

    pixel_difference: float | None
    ids_agreement: float | None
    not_compared: dict[str, str]


@dataclass(frozen=True)
class ImageComparison:
    """What the engine sees, and how far that is from what transformers sees.

    `grids` are each image's rows and columns of tiles; `tiles` counts those of all images, and `feature_rows` the
    prompt's tokens that are features of theirs. `max_feature_difference` and `mean_feature_difference` compare the
    features of the engine's tower with those of transformers' tower and projector in float32, on the same pixel values.
    `feature_difference` is the first of them divided by the reference's largest |feature|, `largest_feature`, and
    `worst_tile` is the tile that has it, of those of all images, counted from 0.
    """

    grids: tuple[tuple[int, int], ...]
    tiles: int
    feature_rows: int
    largest_feature: float
    max_feature_difference: float
    mean_feature_difference: float
    feature_difference: float
    worst_tile: int
    processor: ProcessorComparison

    def failures(self, thresholds: Mapping[str, float]) -> list[str]:
        """Describe the thresholds that are missed. What was not compared misses none."""
        figures = {**vars(self), **vars(self.processor)}
        compared = {name: figures[name] for name in thresholds if figures.get(name) is not None}
        return [f"images {words}" for words in missed(compared, thresholds)]


def compare_images(
    manifest: Described,
    tower: ImageFeatures | None,
    checkpoint: Path,
    prompt: ImagePrompt,
    adapters: Sequence[Path] = (),
) -> tuple[ImageComparison, NDArray[np.float32]]:
    """Compare what an engine sees in a prompt, with its `tower`, with what transformers sees.

    Also returns the reference's features [rows, D] of the prompt's images.

    Raises:
        InputError: the engine's runtime has no tower; the checkpoint has none or another one.
        CheckFailed: the engine's features are not finite.
        EnvironmentLacks: torch or transformers is missing.
    """
    if tower is None:
        raise InputError(f"images: the runtime of {manifest.target} engines sees none; leave them out")
    expected = load_tower(manifest, checkpoint, adapters).features(prompt.images.tiles)
    return compare_seen(tower, checkpoint, prompt, expected), expected


def compare_seen(
    tower: ImageFeatures, checkpoint: Path, prompt: ImagePrompt, expected: NDArray[np.float32]
) -> ImageComparison:
    """The same comparison, where the reference's features [rows, D] are `expected`.

    Raises:
        CheckFailed: the engine's features are not finite.
    """
    processor = compare_processors(checkpoint, prompt)
    return compare_features(prompt, expected, np.concatenate(tower.of(prompt.images)), processor)


def compare_processors(checkpoint: Path, prompt: ImagePrompt) -> ProcessorComparison:
    """Compare the engine's tiles, and the ids of a text with the images, with those of transformers' processor."""
    reasons: dict[str, str] = {}

    def tiles() -> float:
        theirs, ours = transformers_tiles(checkpoint, prompt.pictures), prompt.images.tiles
        return float(np.abs(theirs - ours).max()) if theirs.shape == ours.shape else np.inf

    def ids() -> float:
        if prompt.codec is None or prompt.remark:
            raise EnvironmentLacks(prompt.remark or "the engine has no tokenizer")
        written = _as_text(prompt, prompt.codec)
        theirs = transformers_ids(checkpoint, written, prompt.pictures)
        ours = np.asarray(expand_images(prompt.codec.encode(written), prompt.images.grids, prompt.tokens))
        return float((theirs == ours).mean()) if theirs.shape == ours.shape else 0.0

    def compared(name: str, measure: Callable[[], float]) -> float | None:
        try:
            return measure()
        except EnvironmentLacks as error:
            reasons[name] = str(error)
            return None

    return ProcessorComparison(compared("pixel_difference", tiles), compared("ids_agreement", ids), reasons)


def compare_features(
    prompt: ImagePrompt, reference: NDArray[np.float32], engine: NDArray[Any], processor: ProcessorComparison
) -> ImageComparison:
    """Compare the features [rows, D] of the prompt's images, in float64.

    Raises:
        InputError: the shapes differ.
        CheckFailed: the engine's features are not finite (a NaN equals nothing).
    """
    rows = prompt.tokens.rows_of_a_tile
    if reference.shape != engine.shape:
        raise InputError(f"features of shape {list(engine.shape)} against {list(reference.shape)}: not comparable")
    if not np.isfinite(engine).all():
        at = int(np.argwhere(~np.isfinite(engine))[0][0]) // rows
        raise CheckFailed(
            f"the engine's features of tile {at} are not finite: its vision tower was built or loaded wrong"
        )
    difference = np.abs(reference.astype(np.float64) - engine)
    largest = float(np.abs(reference).max())
    return ImageComparison(
        grids=prompt.images.grids,
        tiles=len(prompt.images.tiles),
        feature_rows=len(reference),
        largest_feature=largest,
        max_feature_difference=float(difference.max()),
        mean_feature_difference=float(difference.mean()),
        feature_difference=float(difference.max()) / (largest or 1.0),
        worst_tile=int(difference.max(axis=1).argmax()) // rows,
        processor=processor,
    )


def _as_text(prompt: ImagePrompt, text: TextCodec) -> str:
    """The prompt as a person would write it: its random tokens decoded, with a placeholder for each image."""
    pieces: list[list[int]] = [[]]
    for token in prompt.written:
        if token == prompt.tokens.image:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return "<|image|>".join(map(text.decode, pieces))
