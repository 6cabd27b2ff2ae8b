"""The quantised weights of a checkpoint that l4export wrote, as l4export's own reader has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from l4export.checkpoint import open_checkpoint
from l4export.engine.checkpoint_manifest import load_checkpoint_manifest
from l4export.model.tensors import tensors
from l4export.model.weight_names import kind_of
from l4export.storage.safetensors import HANDLED_DTYPES

__all__ = ["CheckpointWeights"]

_HALF_FLOATS = {("BF16",): "bfloat16", ("F16",): "float16"}


class CheckpointWeights:
    """Float32 values of a written checkpoint's quantised weights, and of routers that a calibration has fitted, in the
    names (without prefix) and the layout of the checkpoint that it was made from.

    Raises:
        InputError: no such checkpoint, or one that cannot be read.
        StorageError: reading failed.
    """

    input_scales: dict[str, float] = {}  # noqa: RUF012 (never written)
    """None: where activations are rounded, every token has a scale of its own."""

    def __init__(self, directory: Path) -> None:
        written, opened = load_checkpoint_manifest(directory), open_checkpoint(directory)
        self._weights = {name: opened.tensor(name, shape) for name, shape in tensors(opened.config).items()}
        fitted = "calibration" in written.options["weights"]
        self.names = [
            name
            for name, weight in self._weights.items()
            if not set(weight.formats) <= set(HANDLED_DTYPES) or (fitted and kind_of(name) == "router")
        ]
        """The weights that are quantised, and routers that were fitted."""
        self.half_floats = {
            name: _HALF_FLOATS[weight.formats]
            for name, weight in self._weights.items()
            if name not in self.names and weight.formats in _HALF_FLOATS
        }
        """The other weights that are stored in 16 bits, each with its dtype as torch calls it."""

    def rows(self, name: str, rows: slice) -> np.ndarray | None:
        """Rows of a weight's first axis (features, or experts); None for a weight that is not quantised."""
        return self._weights[name].read((rows,)).astype(np.float32) if name in self.names else None

    def stored_bytes(self) -> dict[str, float]:
        """Bytes of every weight, codes with scales and shapes."""
        places = {name: [part.place for part in weight.parts] for name, weight in self._weights.items()}
        return {name: float(sum(stop - start for _, start, stop in of)) for name, of in places.items()}
