"""Engines on ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4export.errors import EnvironmentLacks, InputError
from l4export.manifest import Manifest
from l4export.runtimes.engine import DECODER, Engine
from l4export.runtimes.host_cache import new_host_cache
from l4export.runtimes.kv_cache import KVCache

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntimeEngine"]

_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeEngine(Engine):
    """An engine whose graph ONNX Runtime executes. `threads` of one call; None means one a core.

    Attributes:
        inference: The loaded graph.
    """

    def __init__(self, directory: Path, manifest: Manifest, threads: int | None = None) -> None:
        super().__init__(directory, manifest)
        self.inference = _inference_session(directory / DECODER, threads)
        _check_interface(self.inference, manifest, directory)

    @property
    def provider(self) -> str:
        """The first of the session's execution providers."""
        return str(self.inference.get_providers()[0])

    @property
    def threads(self) -> int | None:
        """Of the loaded session."""
        return int(self.inference.get_session_options().intra_op_num_threads)

    def new_cache(self, manifest: Manifest, batch: int, capacity: int) -> KVCache:
        """In this machine's memory."""
        return new_host_cache(self.inference, manifest, batch, capacity)


def _check_interface(inference: onnxruntime.InferenceSession, manifest: Manifest, directory: Path) -> None:
    """The graph's own inputs and outputs are those that the manifest tells of."""
    declared = [[value["name"], list(value["shape"])] for value in (*manifest.inputs, *manifest.outputs)]
    values = (*inference.get_inputs(), *inference.get_overridable_initializers(), *inference.get_outputs())
    if sorted(declared) != sorted([value.name, list(value.shape)] for value in values):
        raise InputError(f"{directory}: manifest.json and {DECODER} tell of different inputs; build the engine again")


def _inference_session(decoder: Path, threads: int | None) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EnvironmentLacks("running an engine needs onnxruntime: pip install 'l4export[cpu]'") from error
    options: Any = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and told in one line by whoever asked
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    # The rest are ONNX Runtime's defaults, each measured against its alternative. Weights stay mapped from the data
    # files; only what a kernel packs for itself is copied, and its original is then no longer resident. Without packing
    # INT4 decodes a hundred times slower; packing in parallel doubles the peak; sleeping instead of spinning costs a
    # sixth of the speed on an idle machine.
    # The exception: should a DequantizeLinear and a product be fused, activations must stay as they are.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        session = ort.InferenceSession(str(decoder), options, providers=[_PROVIDER])
    except Exception as error:
        detail = " ".join(str(error).split())[:300]
        raise InputError(f"{decoder}: ONNX Runtime {ort.__version__} cannot load it ({detail})") from error
    if session.get_providers()[0] != _PROVIDER:
        raise EnvironmentLacks(f"ONNX Runtime gave {session.get_providers()[0]} instead of {_PROVIDER}")
    return session
