"""An engine's vision tower on ONNX Runtime's CPU provider."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import VISION, Manifest
from l4export.errors import InputError
from l4export.runtimes.tile_calls import tile_calls

__all__ = ["VisionTower"]


class VisionTower:
    """What an engine sees images with: loaded when it is first asked, shared by any number of threads.

    `options` are ONNX Runtime's for the session, and this one's alone.
    """

    def __init__(self, directory: Path, manifest: Manifest, options: Any) -> None:
        self._directory, self._manifest, self._options = directory, manifest, options
        # A pattern would have the second call of a shape take its memory anew, beside what the first call keeps.
        options.enable_mem_pattern = False
        self._loading, self._session = threading.Lock(), None

    def features(self, tiles: NDArray[np.float32]) -> NDArray[Any]:
        """Rows [rows, D] for the image tokens of these tiles, in order, in the dtype that the decoder takes.

        A few tiles are computed at a time, so that memory does not grow with their number; every tile gives the same
        numbers however they are put together.

        Args:
            tiles: Pixel values float32 [n, 3, T, T], n of 1 or more, as the checkpoint's image processor gives them.

        Raises:
            InputError: the engine has no tower, or the array is something else.
        """
        calls, session = tile_calls(self._directory, self._manifest.vision, tiles), self._loaded()
        return np.concatenate([session.run(None, {"pixel_values": call})[0] for call in calls])

    def _loaded(self) -> Any:
        import onnxruntime as ort

        with self._loading:
            if self._session is None:
                path = self._directory / self._manifest.graphs[VISION].file
                try:
                    self._session = ort.InferenceSession(path, self._options, ["CPUExecutionProvider"])
                except Exception as error:
                    detail = " ".join(str(error).split())[:300]
                    raise InputError(f"{path}: ONNX Runtime {ort.__version__} cannot load it ({detail})") from error
            return self._session
