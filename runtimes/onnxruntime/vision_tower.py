"""An engine's vision tower on ONNX Runtime's CPU provider."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import VISION, Graph, Manifest
from l4export.runtimes.images.tile_calls import tile_calls

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["VisionTower"]


class VisionTower:
    """What an engine sees images with: loaded when it is first asked, shared by any number of threads.

    `open_graph` loads one of the engine's graphs on the CPU, and refuses one that is not as the manifest tells it.
    """

    def __init__(self, directory: Path, manifest: Manifest, open_graph: Callable[[Graph], InferenceSession]) -> None:
        self._directory, self._manifest, self._open_graph = directory, manifest, open_graph
        self._loading = threading.Lock()
        self._session: InferenceSession | None = None

    def features(self, tiles: NDArray[np.float32]) -> NDArray[Any]:
        """Rows [rows, D] for the image tokens of these tiles, in order, in the dtype that the decoder takes.

        A few tiles are computed at a time, so that memory does not grow with their number; every tile gives the same
        numbers however they are put together.

        Args:
            tiles: Pixel values float32 [n, 3, T, T], n of 1 or more, as the checkpoint's image processor gives them.

        Raises:
            InputError: the engine has no tower, one that ONNX Runtime cannot load or the manifest does not describe, or
                the array is something else.
        """
        calls, session = tile_calls(self._directory, self._manifest.vision, tiles), self._loaded()
        return np.concatenate([session.run(None, {"pixel_values": call})[0] for call in calls])

    def _loaded(self) -> InferenceSession:
        with self._loading:
            if self._session is None:
                self._session = self._open_graph(self._manifest.graphs[VISION])
            return self._session
