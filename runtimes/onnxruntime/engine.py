"""Engines on ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export._version import __version__
from l4export.engine.manifest import VISION, Graph, Manifest, PackedWeight
from l4export.errors import InputError, printable
from l4export.machine.cuda import ONE_AT_A_TIME
from l4export.runtimes.cache.host_cache import new_host_cache
from l4export.runtimes.cache.kv_cache import KVCache
from l4export.runtimes.engine import Engine
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.onnxruntime.card import CUDA, Card, open_card
from l4export.runtimes.onnxruntime.composition_check import Executor, trust
from l4export.runtimes.onnxruntime.cpu_kernels import add_cpu_kernels
from l4export.runtimes.onnxruntime.cuda_session import open_on_cuda
from l4export.runtimes.onnxruntime.execution import CudaExecution
from l4export.runtimes.onnxruntime.installed import installed_onnxruntime, require_version
from l4export.runtimes.onnxruntime.portable import cpu_session
from l4export.runtimes.onnxruntime.tower_check import trust_tower
from l4export.runtimes.onnxruntime.vision_tower import Compute, VisionTower

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntimeEngine", "open_session", "session_options", "vision_tower"]

_CPU = "CPUExecutionProvider"
_PROVIDERS = {"cpu": _CPU, "cuda": CUDA}
_DTYPES = {"float32": "float"}
"""NumPy's name of a dtype -> ONNX Runtime's, where they differ."""


class OnnxRuntimeEngine(Engine):
    """An engine whose graph ONNX Runtime executes.

    `threads` are those of one call; None means one a core. `provider` is "cpu" or "cuda"; None means the engine's own.
    `profile`: as `session_options`.

    Attributes:
        inference: The loaded graph.
        device: The GPU that executes it; None where the CPU does.

    Raises:
        EnvironmentLacks: ONNX Runtime is older than the engine needs; the execution provider, or what it needs, is
            missing; or it computes something else.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        threads: int | None = None,
        provider: str | None = None,
        profile: Path | None = None,
    ) -> None:
        super().__init__(directory, manifest)
        self._intended = _PROVIDERS[manifest.decoder.runtime.provider]
        executor = _PROVIDERS[provider] if provider else self._intended
        own = manifest.decoder if executor == CUDA else manifest.portable
        require_version(directory, [own, *([manifest.graphs[VISION]] if manifest.vision else [])])
        self.device: CudaExecution | None = None
        if executor == CUDA:
            card = open_card(directory, manifest)
            _check_composition(directory, manifest, card)  # before the engine takes the card's memory
            self.device = _open_on_card(directory, own, card, threads, profile)
            self.inference = self.device.inference
        else:
            decoder = directory / own.file
            options = session_options(threads, manifest.precision["activations"] == "fp8", profile)
            if manifest.needs_cpu_kernels:
                add_cpu_kernels(options)
            self.inference = open_session(decoder, options, manifest.packed_weights)
            _check_interface(self.inference, own, decoder)
        self._tower = VisionTower(directory, manifest, partial(self._load_tower, threads))
        self.features = ImageFeatures(self._tower.features) if manifest.vision else None

    def image_features(self, tiles: NDArray[np.float32]) -> NDArray[Any]:
        """What the decoder takes for the image tokens of tiles; see `VisionTower.features`."""
        return self._tower.features(tiles)

    def _load_tower(self, threads: int | None, graph: Graph) -> Compute:
        """The vision tower, where the decoder is."""
        if self.device is None:
            return _tower_on_cpu(self.directory, self.manifest, threads, graph)
        return _tower_on_card(self.directory, self.manifest, self.device.card, threads, graph)

    @property
    def provider(self) -> str:
        """The first of the session's execution providers, and whether the engine is for another; or the GPU."""
        name = str(self.inference.get_providers()[0])
        if self.device is not None:
            return f"{name} on {self.device.description}"
        return name if name == self._intended else f"{name} instead of {self._intended}"

    @property
    def threads(self) -> int | None:
        """Of the loaded session, if the CPU computes."""
        on_cpu = self.inference.get_providers()[0] == _CPU
        return int(self.inference.get_session_options().intra_op_num_threads) if on_cpu else None

    def new_cache(self, manifest: Manifest, batch: int, capacity: int) -> KVCache:
        """Where the provider computes: in this machine's memory or in the GPU's."""
        if self.device is None:
            return new_host_cache(self.inference, manifest, batch, capacity)
        return self.device.new_cache(manifest, batch, capacity)


def _open_on_card(
    directory: Path, graph: Graph, card: Card, threads: int | None, profile: Path | None
) -> CudaExecution:
    """One of an engine's graphs on a GPU. A session with a profile runs every step as prompts are run."""
    path = directory / graph.file
    _check_inputs(path, graph)
    problem = None if profile is None else "the session is profiled"
    inference, recordings = open_on_cuda(path, session_options(threads, profile=profile), problem)
    _check_interface(inference, graph, path)
    return CudaExecution(card, inference, recordings)


def vision_tower(directory: Path, manifest: Manifest, threads: int | None = None) -> VisionTower:
    """An engine's vision tower on the CPU, which is loaded when it is first asked."""
    return VisionTower(directory, manifest, partial(_tower_on_cpu, directory, manifest, threads))


def _tower_on_cpu(directory: Path, manifest: Manifest, threads: int | None, graph: Graph) -> Compute:
    path, options = directory / graph.file, session_options(threads)
    if manifest.needs_cpu_kernels:
        add_cpu_kernels(options)
    # A pattern would have the second call of a shape take its memory anew, beside what the first call keeps.
    options.enable_mem_pattern = False
    session = open_session(path, options)
    _check_interface(session, graph, path)
    return partial(_run_tower, session)


def _tower_on_card(directory: Path, manifest: Manifest, card: Card, threads: int | None, graph: Graph) -> Compute:
    """A vision tower on a GPU, once it has given what the CPU gives. It may not run while a step is recorded."""
    path = directory / graph.file

    def on_card(tiles: NDArray[np.float32]) -> NDArray[Any]:
        with ONE_AT_A_TIME:
            return _run_tower(session, tiles)

    with ONE_AT_A_TIME:
        card.check_tower()
        session, _ = open_on_cuda(path, session_options(threads), "an image is computed once")
    _check_interface(session, graph, path)
    on_cpu = partial(_tower_on_cpu, directory, manifest, threads, graph)
    trust_tower(directory, manifest, _installation(card), on_card, on_cpu)
    return on_card


def _run_tower(session: onnxruntime.InferenceSession, tiles: NDArray[np.float32]) -> NDArray[Any]:
    rows: NDArray[Any] = session.run(None, {"pixel_values": tiles})[0]
    return rows


def _check_composition(directory: Path, manifest: Manifest, card: Card) -> None:
    """Trust the GPU with the engine's numbers, or raise as `trust`."""

    def opened(check: Graph, profile: Path | None) -> CudaExecution:
        return _open_on_card(directory, check, card, None, profile)

    trust(directory, manifest, Executor(CUDA, opened), _installation(card))


def _installation(card: Card) -> dict[str, str]:
    """All that decides the numbers of an engine on a GPU, beside the engine."""
    import onnxruntime as ort

    return {**card.cuda.installation, "onnxruntime": str(ort.__version__), "l4export": __version__}


def _check_inputs(decoder: Path, graph: Graph) -> None:
    """Refuse inputs with defaults: on CUDA ONNX Runtime computes with the defaults, whatever is given."""
    for value in graph.inputs:
        if value.optional:
            raise InputError(
                f"{decoder}: {value.name} has a default, which CUDA lets no call override; build the engine again"
            )


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


def open_session(decoder: Path, options: Any, packed: Sequence[PackedWeight] = ()) -> onnxruntime.InferenceSession:
    """Load a graph on the CPU, with the options of `session_options`; `packed` are the weights to be unpacked for it.

    Raises:
        InputError: a graph that ONNX Runtime does not take, or packed weights that do not fit into memory.
    """
    import onnxruntime as ort

    try:
        return cpu_session(str(decoder), options, decoder.parent, packed)
    except InputError:
        raise
    except Exception as error:
        detail = printable(str(error))[:300]
        raise InputError(f"{decoder}: ONNX Runtime {ort.__version__} cannot load it ({detail})") from error


def session_options(threads: int | None = None, fp8_activations: bool = False, profile: Path | None = None) -> Any:
    """ONNX Runtime's options for an engine's graph, on any provider.

    `threads` None means one a core. With `profile` a trace of every operator is written to a file whose name begins so.

    Raises:
        EnvironmentLacks: no onnxruntime.
    """
    options: Any = installed_onnxruntime().SessionOptions()
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
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options
