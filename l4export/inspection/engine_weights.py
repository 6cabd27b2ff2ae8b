"""The weights that an engine, or a checkpoint that l4export wrote, computes with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from l4export.engine.checkpoint_manifest import is_written_checkpoint
from l4export.inspection.checkpoint_weights import CheckpointWeights
from l4export.inspection.dequantized_weights import DequantizedWeights

__all__ = ["EngineWeights", "open_weights"]


class EngineWeights(Protocol):
    """What is quantised, by its names in the checkpoint that it was made from."""

    @property
    def names(self) -> list[str]:
        """The weights that are quantised, and routers that a calibration has fitted."""

    @property
    def input_scales(self) -> Mapping[str, float]:
        """By the names of FP8 weights, the scales by which their inputs are rounded; none where none are fixed."""

    @property
    def half_floats(self) -> Mapping[str, str]:
        """Other weights that may have been rounded when they were written, each with its dtype as torch calls it."""

    def rows(self, name: str, rows: slice) -> np.ndarray | None:
        """Float32 values: rows of a weight's first axis. None for a weight that is not quantised."""

    def stored_bytes(self) -> dict[str, float]:
        """Bytes of every weight, quantised or not, with all that is stored beside its codes."""


def open_weights(directory: Path) -> EngineWeights:
    """The weights of an engine or of a written checkpoint.

    Raises:
        InputError: neither of them, or one that cannot be read.
        StorageError: reading failed.
    """
    return CheckpointWeights(directory) if is_written_checkpoint(directory) else DequantizedWeights(directory)
