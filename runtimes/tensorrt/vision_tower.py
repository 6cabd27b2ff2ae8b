"""An engine's vision tower on TensorRT."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import VISION, Manifest, TensorSpec
from l4export.errors import InputError
from l4export.runtimes.cache.binding_plan import Tensor
from l4export.runtimes.cache.device import Buffer
from l4export.runtimes.cache.kv_cache import numpy_dtype
from l4export.runtimes.images.tile_calls import tile_calls
from l4export.runtimes.tensorrt.device import TensorRTDevice

__all__ = ["TensorRTTower"]


class TensorRTTower:
    """What a TensorRT engine sees images with: loaded when it is first asked, one call at a time.

    `open_device` deserialises the engine of a path.
    """

    def __init__(self, directory: Path, manifest: Manifest, open_device: Callable[[Path], TensorRTDevice]) -> None:
        self._directory, self._manifest, self._open_device = directory, manifest, open_device
        self._calling = threading.Lock()
        self._device: TensorRTDevice | None = None

    def features(self, tiles: NDArray[np.float32]) -> NDArray[Any]:
        """Rows [rows, D] for the image tokens of these tiles, in order, in the dtype that the decoder takes.

        Args:
            tiles: Pixel values float32 [n, 3, T, T], n of 1 or more, as the checkpoint's image processor gives them.

        Raises:
            InputError: the array is something else, or the engine is not the one that the manifest describes.
        """
        calls = tile_calls(self._directory, self._manifest.vision, tiles)
        with self._calling:
            return np.concatenate([self._rows(call) for call in calls])

    def _rows(self, tiles: NDArray[np.float32]) -> NDArray[Any]:
        device, tower, vision = self._loaded(), self._manifest.graphs[VISION], self._manifest.vision
        assert vision is not None
        pixels, features = _tensor(tower.inputs[0], False), _tensor(tower.outputs[0], True)
        rows = np.empty(features.shape_in({"rows": len(tiles) * vision.rows_per_tile}), features.dtype)
        arrays: dict[Tensor, NDArray[Any]] = {pixels: tiles, features: rows}
        buffers: dict[Tensor, Buffer] = {tensor: device.allocate(array.nbytes) for tensor, array in arrays.items()}
        binding = device.binding(0, 0)
        for tensor, array in arrays.items():
            binding.bind(tensor, array.shape, buffers[tensor].address)
        buffers[pixels].write(tiles)
        binding.run()
        buffers[features].read(rows)
        return rows

    def _loaded(self) -> TensorRTDevice:
        if self._device is None:
            path = self._directory / self._manifest.graphs[VISION].parts[0].engine
            device = self._open_device(path)
            tower = self._manifest.graphs[VISION]
            due = {value.name: value.dtype for value in (*tower.inputs, *tower.outputs)}
            if {name: told.dtype for name, told in device.reported(0).items()} != due:
                raise InputError(f"{path} does not match manifest.json; build the engine again")
            self._device = device
        return self._device


def _tensor(told: TensorSpec, is_output: bool) -> Tensor:
    return Tensor(told.name, numpy_dtype(told.dtype), told.shape, is_output, False, None, False)
