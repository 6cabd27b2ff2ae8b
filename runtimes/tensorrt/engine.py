"""A TensorRT engine directory, opened."""

from __future__ import annotations

import importlib
from pathlib import Path

from l4export.engine.manifest import Manifest
from l4export.errors import InputError
from l4export.machine.cuda import Cuda
from l4export.machine.tensorrt import MODULES, check_package, check_version
from l4export.runtimes.cache.device_cache import DeviceCache
from l4export.runtimes.cache.kv_cache import KVCache
from l4export.runtimes.engine import Engine
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.tensorrt.device import TensorRTDevice
from l4export.runtimes.tensorrt.plan import departures, tensorrt_plan
from l4export.runtimes.tensorrt.vision_tower import TensorRTTower

__all__ = ["TensorRTEngine"]


class TensorRTEngine(Engine):
    """An engine that TensorRT executes. Sessions have one row, as the engine's optimisation profiles have.

    What the graphs of other targets refuse is refused before the engine runs: token ids, lengths and the limits of one
    call by `l4export.runtimes.session`, and an engine that does not match its manifest by this class.

    Raises:
        EnvironmentLacks: no driver, no GPU, no TensorRT, or one for which the engine was not built.
        InputError: an engine that departs from its manifest.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        super().__init__(directory, manifest)
        self._plan = tensorrt_plan(manifest)
        parts, variant = manifest.decoder.parts, manifest.decoder.runtime.provider
        cuda = Cuda(
            f"{directory}: a TensorRT engine runs on an NVIDIA GPU",
            "build with --target onnx to run the same graph on a CPU",
        )
        check_package(variant)
        trt = importlib.import_module(MODULES[variant])
        check_version(trt)
        self._device = TensorRTDevice(trt, [directory / part.engine for part in parts], cuda)
        tower = TensorRTTower(directory, manifest, lambda path: TensorRTDevice(trt, [path], cuda))
        self.features = ImageFeatures(tower.features) if manifest.vision else None
        self._provider = f"{trt.__name__} {trt.__version__} on {cuda.name}"
        for index, part in enumerate(parts):
            if found := departures(self._plan, index, self._device.reported(index)):
                raise InputError(
                    f"{directory / part.engine} does not match manifest.json: {found[0]}; build the engine again"
                )

    @property
    def provider(self) -> str:
        """TensorRT, its version, and the GPU."""
        return self._provider

    @property
    def threads(self) -> int | None:
        """None: the GPU computes."""
        return None

    def new_cache(self, manifest: Manifest, batch: int, capacity: int) -> KVCache:
        """In the GPU's memory, with all the slots that the engine was built with.

        Raises:
            InputError: more than one row.
        """
        if batch != 1:
            raise InputError(f"a session of {batch} rows: a TensorRT engine has one; use one session for each")
        return DeviceCache(self._device, self._plan, manifest, batch, capacity)
