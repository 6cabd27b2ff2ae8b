"""Engines on ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Graph, Manifest
from l4export.errors import EnvironmentLacks, InputError
from l4export.machine.cuda_driver import open_driver
from l4export.runtimes.cache.binding_plan import BindingPlan, plan_bindings
from l4export.runtimes.cache.device_cache import DeviceCache
from l4export.runtimes.cache.host_cache import new_host_cache
from l4export.runtimes.cache.kv_cache import KVCache
from l4export.runtimes.engine import Engine
from l4export.runtimes.onnxruntime.device import OnnxRuntimeDevice
from l4export.runtimes.onnxruntime.operator_check import check_operators
from l4export.runtimes.onnxruntime.vision_tower import VisionTower

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntimeEngine", "check_cuda_provider", "cuda_plan", "open_session", "session_options"]

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_PROVIDERS = {"cpu": _CPU, "cuda": _CUDA}
_PRELOADING = threading.Lock()
_DTYPES = {"float32": "float"}
"""NumPy's name of a dtype -> ONNX Runtime's, where they differ."""


class OnnxRuntimeEngine(Engine):
    """An engine whose graph ONNX Runtime executes.

    `threads` are those of one call; None means one a core. `provider` is "cpu" or "cuda"; None means the engine's own.

    Attributes:
        inference: The loaded graph.

    Raises:
        EnvironmentLacks: the execution provider, or what it needs, is missing; or it computes something else.
    """

    def __init__(
        self, directory: Path, manifest: Manifest, threads: int | None = None, provider: str | None = None
    ) -> None:
        super().__init__(directory, manifest)
        graph, decoder = manifest.decoder, directory / manifest.decoder.file
        self._intended = _PROVIDERS[graph.runtime.provider]
        executor = _PROVIDERS[provider] if provider else self._intended
        if executor == _CUDA:
            check_cuda_provider(directory)
        self.inference = open_session(decoder, executor, threads, manifest.precision["activations"] == "fp8")
        _check_interface(self.inference, graph, decoder)
        if executor == _CUDA:
            check_operators(decoder, executor)
        self._tower = VisionTower(directory, manifest, session_options(threads))

    def image_features(self, tiles: NDArray[np.float32]) -> NDArray[Any]:
        """What the decoder takes for the image tokens of tiles; see `VisionTower.features`. The CPU computes it."""
        return self._tower.features(tiles)

    @property
    def provider(self) -> str:
        """The first of the session's execution providers, and whether the engine is for another."""
        name = str(self.inference.get_providers()[0])
        return name if name == self._intended else f"{name} instead of {self._intended}"

    @property
    def threads(self) -> int | None:
        """Of the loaded session, if the CPU computes."""
        on_cpu = self.inference.get_providers()[0] == _CPU
        return int(self.inference.get_session_options().intra_op_num_threads) if on_cpu else None

    def new_cache(self, manifest: Manifest, batch: int, capacity: int) -> KVCache:
        """Where the provider computes: in this machine's memory or in the GPU's."""
        if self.inference.get_providers()[0] == _CPU:
            return new_host_cache(self.inference, manifest, batch, capacity)
        return DeviceCache(OnnxRuntimeDevice([self.inference], "cuda"), cuda_plan(manifest), manifest, batch, capacity)


def cuda_plan(manifest: Manifest) -> BindingPlan:
    """Caches on the device; whatever is of one call on the host, from where ONNX Runtime copies it."""
    return plan_bindings(manifest, [(1, 1, manifest.prefill_max_tokens)], lambda _: True)


def check_cuda_provider(directory: Path) -> None:
    """Check that CUDA can be used: first the driver, then the package, whose libraries are then loaded.

    Raises:
        EnvironmentLacks: no driver, no GPU, or an onnxruntime without the CUDA provider.
    """
    open_driver(
        f"{directory}: an ort-cuda engine runs on an NVIDIA GPU",
        "compare its numbers on a CPU with `l4export parity --provider cpu`",
    )
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EnvironmentLacks("an ort-cuda engine needs onnxruntime-gpu: pip install 'l4export[cuda]'") from error
    if _CUDA not in ort.get_available_providers():
        raise EnvironmentLacks(
            f"{directory}: this onnxruntime {ort.__version__} has no {_CUDA}: pip uninstall onnxruntime, then "
            "pip install 'l4export[cuda]'"
        )
    ort.set_default_logger_severity(4)  # what is missing is reported in one line
    # One thread at a time: two that redirect the output side by side would leave it redirected.
    with _PRELOADING, contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()  # CUDA and cuDNN, where they are Python packages


def _check_interface(inference: onnxruntime.InferenceSession, graph: Graph, decoder: Path) -> None:
    """The graph's own inputs and outputs are those that the manifest declares."""
    required = [value for value in graph.inputs if not value.optional]
    optional = [value for value in graph.inputs if value.optional]
    for declared, values in (
        (required, inference.get_inputs()),
        (optional, inference.get_overridable_initializers()),
        (graph.outputs, inference.get_outputs()),
    ):
        told = {value.name: (f"tensor({_DTYPES.get(value.dtype, value.dtype)})", value.shape) for value in declared}
        if told != {value.name: (value.type, tuple(value.shape)) for value in values}:
            raise InputError(
                f"{decoder}: has other inputs or outputs than manifest.json declares; build the engine again"
            )


def open_session(
    decoder: Path, provider: str, threads: int | None, fp8_activations: bool
) -> onnxruntime.InferenceSession:
    """Load a graph on an execution provider, or fail. ONNX Runtime itself would fall back to the CPU.

    Raises:
        EnvironmentLacks: no onnxruntime, or another provider than that.
        InputError: a graph that it does not take.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EnvironmentLacks("running an engine needs onnxruntime: pip install 'l4export[cpu]'") from error
    options = session_options(threads, fp8_activations)
    try:
        session = ort.InferenceSession(str(decoder), options, providers=[provider])
    except Exception as error:
        detail = " ".join(str(error).split())[:300]
        raise InputError(f"{decoder}: ONNX Runtime {ort.__version__} cannot load it ({detail})") from error
    if session.get_providers()[0] != provider:
        raise EnvironmentLacks(
            f"{decoder}: ONNX Runtime {ort.__version__} gave {session.get_providers()[0]} instead of {provider}: "
            "install the CUDA and cuDNN that this version of onnxruntime-gpu needs: pip install 'l4export[cuda]'"
        )
    return session


def session_options(threads: int | None = None, fp8_activations: bool = False) -> Any:
    """ONNX Runtime's options for an engine's graph, on any provider; `threads` None means one a core."""
    import onnxruntime as ort

    options: Any = ort.SessionOptions()
    options.log_severity_level = 4  # failures are raised, and the caller reports them in one line
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    # The others are ONNX Runtime's defaults, each measured against its alternative. Weights stay mapped from the data
    # files; only what a kernel packs for itself is copied, and its original is then no longer resident. Without packing
    # INT4 decodes a hundred times slower; packing in parallel doubles the peak; sleeping instead of spinning costs a
    # sixth of the speed on an idle machine.
    # One default is changed: if a DequantizeLinear and a product are fused, activations must stay as they are.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if fp8_activations:
        # Products between codes would be fused into operators for integers, which do not take FP8.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options
