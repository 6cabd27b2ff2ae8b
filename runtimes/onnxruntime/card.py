"""The GPU that an `ort-cuda` engine is to run on: whether it and its driver can, and whether there is room.

Everything is asked of the driver before ONNX Runtime loads a byte.
"""

from __future__ import annotations

import contextlib
import io
import threading
from dataclasses import dataclass
from pathlib import Path

from l4export.engine.gpu_memory import GpuEngine, GpuMemory, gpu_memory, largest_context
from l4export.engine.manifest import DECODER, VISION, DeviceNeeds, Manifest
from l4export.engine.tower_memory import gpu_tower_working
from l4export.engine.vision_interface import TILES_PER_CALL
from l4export.errors import EnvironmentLacks, InputError
from l4export.machine.cuda import Cuda

__all__ = ["CUDA", "Card", "open_card"]

CUDA = "CUDAExecutionProvider"
_PRELOADING = threading.Lock()


@dataclass(frozen=True)
class Card:
    """The GPU, and the engine's part of its memory.

    Attributes:
        cuda: The GPU.
        directory: The engine.
        manifest: The engine's.
        free: Bytes that were free before anything was loaded.
    """

    cuda: Cuda
    directory: Path
    manifest: Manifest
    free: int

    def check_driver(self, needs: DeviceNeeds) -> None:
        """Check that the GPU has the capability and the driver the version of CUDA.

        Raises:
            EnvironmentLacks: one of them is older.
        """
        cuda, directory = self.cuda, self.directory
        if cuda.capability < _version(needs.compute_capability):
            raise EnvironmentLacks(
                f"{directory}: {cuda.name} has compute capability {_text(cuda.capability)}, and the engine's operators "
                f"begin with {needs.compute_capability}; take a newer GPU"
            )
        if cuda.driver < _version(needs.cuda):
            raise EnvironmentLacks(
                f"{directory}: the NVIDIA driver supports CUDA {_text(cuda.driver)}, and the engine needs {needs.cuda}"
                "; install a newer driver"
            )

    def check_room(self) -> None:
        """Check that weights, working memory and the caches of a token fit into what is free now.

        Raises:
            EnvironmentLacks: they do not.
        """
        free, total = self.cuda.memory()
        need = self._need(1, 1)
        if need.total > free:
            raise EnvironmentLacks(
                f"{self.directory}: needs {_gb(need.total)} of GPU memory for {_gb(need.weights)} of weights and "
                f"{_gb(need.working)} of working memory, without its caches; {self.cuda.name} has {_gb(free)} free of "
                f"{_gb(total)}: end what else uses it, or see what fits with l4export plan"
            )

    def check_session(self, batch: int, capacity: int) -> None:
        """Check that the caches of a session fit into what is free now, with the engine loaded.

        Raises:
            InputError: they do not; it says how many tokens would.
        """
        free, _ = self.cuda.memory()
        caches = self._need(capacity, batch).caches
        if caches > free:
            fits = largest_context(self._engine, lambda need: need.caches <= free, batch)
            raise InputError(
                f"a session of {batch} x {capacity} tokens takes {_gb(caches)} of caches and {self.cuda.name} has "
                f"{_gb(free)} free: up to {fits} tokens a row fit; give a smaller capacity or batch"
            )

    def check_tower(self) -> None:
        """Check that the vision tower and a call of it fit into what is free now, with the decoder loaded.

        Raises:
            EnvironmentLacks: they do not.
        """
        manifest, weights, (free, _) = self.manifest, self._bytes_of(VISION), self.cuda.memory()
        assert manifest.vision is not None
        width, dtype, tiles = manifest.model.hidden_size, manifest.precision[VISION], TILES_PER_CALL[-1]
        working = gpu_tower_working(manifest.vision, width, dtype, weights, tiles)
        if weights + working > free:
            raise EnvironmentLacks(
                f"{self.directory}: its vision tower needs {_gb(weights)} of GPU memory for weights and {_gb(working)} "
                f"for {tiles} tiles; {self.cuda.name} has {_gb(free)} free: give sessions a smaller capacity or batch"
            )

    def _need(self, context: int, batch: int) -> GpuMemory:
        return gpu_memory(self._engine, context, batch)

    @property
    def _engine(self) -> GpuEngine:
        manifest = self.manifest
        return GpuEngine(
            manifest.model,
            self._bytes_of(DECODER),
            manifest.precision["quant"] != "none",
            manifest.kv_layout,
            manifest.precision["kv_cache"],
            manifest.prefill_max_tokens,
        )

    def _bytes_of(self, graph: str) -> int:
        """The data files of a graph."""
        files = self.manifest.files.items()
        return sum(record.bytes for name, record in files if name.startswith(graph) and name.endswith(".data"))


def open_card(directory: Path, manifest: Manifest) -> Card:
    """Check that CUDA can be used: first the driver and the GPU, then the package, whose libraries are then loaded.

    Raises:
        EnvironmentLacks: no driver, no GPU, one of them too old, too little memory, or an onnxruntime without the CUDA
            provider.
    """
    cuda = Cuda(
        f"{directory}: an ort-cuda engine runs on an NVIDIA GPU",
        "compare its numbers on a CPU with `l4export parity --provider cpu`",
    )
    card = Card(cuda, directory, manifest, cuda.memory()[0])
    if manifest.decoder.needs is not None:
        card.check_driver(manifest.decoder.needs)
    _check_package(directory, cuda)
    card.check_room()
    return card


def _check_package(directory: Path, cuda: Cuda) -> None:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EnvironmentLacks("an ort-cuda engine needs onnxruntime-gpu: pip install 'l4export[cuda]'") from error
    if CUDA not in ort.get_available_providers():
        raise EnvironmentLacks(
            f"{directory}: this onnxruntime {ort.__version__} has no {CUDA}: pip uninstall onnxruntime, then "
            "pip install 'l4export[cuda]'"
        )
    built_with = str(getattr(ort, "cuda_version", "") or "")
    if built_with and cuda.driver[0] < int(built_with.partition(".")[0]):  # a driver runs all of its major version
        raise EnvironmentLacks(
            f"{directory}: onnxruntime-gpu {ort.__version__} is built with CUDA {built_with}, and the NVIDIA driver "
            f"supports {_text(cuda.driver)}; install a newer driver"
        )
    ort.set_default_logger_severity(4)  # what is missing is reported in one line
    # One thread at a time: two that redirect the output side by side would leave it redirected.
    with _PRELOADING, contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()  # CUDA and cuDNN, where they are Python packages


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
