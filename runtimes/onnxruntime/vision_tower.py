"""An engine's vision tower on ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import VISION, Graph, Manifest
from l4export.errors import InputError
from l4export.runtimes.images.tile_calls import tile_calls

__all__ = ["Compute", "VisionTower"]

Compute = Callable[[NDArray[np.float32]], NDArray[Any]]
"""A loaded tower: the tiles of one call, float32 [n, 3, T, T], to rows [rows, D]."""


class VisionTower:
    """What an engine sees images with: loaded when it is first asked, shared by any number of threads.

    `load` loads one of the engine's graphs, and refuses one that is not as the manifest tells it.
    """

    def __init__(self, directory: Path, manifest: Manifest, load: Callable[[Graph], Compute]) -> None:
        self._directory, self._manifest, self._load = directory, manifest, load
        self._loading = threading.Lock()
        self._compute: Compute | None = None

    def features(self, tiles: NDArray[np.float32]) -> NDArray[Any]:
        """Rows [rows, D] for the image tokens of these tiles, in order, in the dtype that the decoder takes.

        A few tiles are computed at a time, so that memory does not grow with their number. On a CPU every tile gives
        the same numbers however they are put together; on a GPU sums may be made in another order.

        Args:
            tiles: Pixel values float32 [n, 3, T, T], n of 1 or more, as the checkpoint's image processor gives them.

        Raises:
            InputError: the engine has no tower, one that ONNX Runtime cannot load or the manifest does not describe;
                the array is something else; or features are beyond the range of the tower's float type.
            EnvironmentLacks: a GPU has no room for the tower, or computes something else than a CPU.
        """
        calls, compute = tile_calls(self._directory, self._manifest.vision, tiles), self._loaded()
        rows = np.concatenate([compute(call) for call in calls])
        if not np.isfinite(rows).all():
            dtype = self._manifest.precision[VISION]
            raise InputError(
                f"{self._directory}: the vision tower computes in {dtype}, and the features of an image are beyond its "
                "range; build the engine with --vision-dtype fp32"
            )
        return rows

    def _loaded(self) -> Compute:
        with self._loading:
            if self._compute is None:
                self._compute = self._load(self._manifest.graphs[VISION])
            return self._compute
