"""Where an engine's vision tower departs from transformers' own, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest
from l4export.inspection.tower_taps import TappedTower, tower_stages
from l4export.reference.of_engine import load_tower

__all__ = ["StageComparison", "TowerComparison", "compare_towers"]


@dataclass(frozen=True)
class StageComparison:
    """How far one stage departs, over all tiles.

    `stage` is `embedding` (patches with their positions, normalised), `layer 0` and so on (the residual stream behind
    it), `pixel shuffle`, `adapter`, or `projector` (the features). `difference` is max |difference| divided by the
    reference's largest |value|, and `difference_rms` the root mean square of the difference divided by that of the
    reference. `threshold` is the largest `difference` that is accepted, or None.
    """

    stage: str
    difference: float
    difference_rms: float
    threshold: float | None

    @property
    def departs(self) -> bool:
        """Whether the threshold is missed; a NaN misses it."""
        return self.threshold is not None and not self.difference <= self.threshold


@dataclass(frozen=True)
class TowerComparison:
    """All stages in their order. `first_departure` names the first that misses its threshold, or is None."""

    stages: tuple[StageComparison, ...]
    first_departure: str | None

    @property
    def failures(self) -> tuple[str, ...]:
        """Describe the first departure; those behind it only follow."""
        return tuple(
            f"vision tower: {stage.stage} is the first to depart: by {stage.difference:.3g} of the largest, threshold "
            f"{stage.threshold:g}"
            for stage in self.stages
            if stage.stage == self.first_departure
        )


def compare_towers(
    engine: Path,
    manifest: Manifest,
    checkpoint: Path,
    tiles: NDArray[np.float32],
    threshold: float | None,
    adapters: Sequence[Path] = (),
) -> tuple[TowerComparison, NDArray[np.float32]]:
    """Run the towers of an engine and of its checkpoint on tiles [n, 3, T, T], and compare every stage.

    Also returns the reference's features [rows, D]. Memory: both towers, and the values of one tile.

    Args:
        engine: The engine's directory.
        manifest: Its manifest, which has a tower.
        checkpoint: The checkpoint that it was built from.
        tiles: Pixel values.
        threshold: What is accepted of every stage, as a share of the reference's largest |value|.
        adapters: The adapters that it was built with.

    Raises:
        InputError: the checkpoint has no tower or another one; a graph that has not all stages.
        EnvironmentLacks: torch, transformers or onnxruntime is missing.
    """
    assert manifest.vision is not None
    reference, tapped, features = load_tower(manifest, checkpoint, adapters), TappedTower(engine, manifest), []
    sums = {stage: _Sums() for stage in tower_stages(manifest.vision)}
    for tile in tiles:
        expected, given = reference.stages(tile), tapped.stages(tile)
        for stage, so_far in sums.items():
            so_far.add(expected[stage], given[stage])
        features.append(expected["projector"])
    stages = tuple(so_far.compared(stage, threshold) for stage, so_far in sums.items())
    departed = next((stage.stage for stage in stages if stage.departs), None)
    return TowerComparison(stages, departed), np.concatenate(features)


@dataclass
class _Sums:
    """What is known of a stage after some tiles: largest values, and sums of squares, each as (difference, value)."""

    largest: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    def add(self, reference: NDArray[np.float32], engine: NDArray[np.float32]) -> None:
        """Take one tile's values, of the same shape."""
        pair = np.stack([engine.astype(np.float64) - reference, reference.astype(np.float64)]).reshape(2, -1)
        self.largest = np.maximum(self.largest, np.abs(pair).max(axis=1))  # a NaN stays
        self.squares += np.square(pair).sum(axis=1)

    def compared(self, stage: str, threshold: float | None) -> StageComparison:
        """The figures over all tiles. A reference that is 0 throughout is divided by 1."""
        (difference, largest), (squares, of_all) = self.largest.tolist(), self.squares.tolist()
        rms = float(np.sqrt(squares / (of_all or 1.0)))
        return StageComparison(stage, difference / (largest or 1.0), rms, threshold)
