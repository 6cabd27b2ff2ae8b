"""A loaded graph on CUDA, and the caches of its sessions."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from l4export.engine.manifest import Manifest
from l4export.runtimes.cache.binding_plan import BindingPlan, plan_bindings
from l4export.runtimes.cache.device_cache import DeviceCache
from l4export.runtimes.onnxruntime.card import Card
from l4export.runtimes.onnxruntime.cuda_session import host_inputs
from l4export.runtimes.onnxruntime.device import OnnxRuntimeDevice
from l4export.runtimes.onnxruntime.recordings import Recordings

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["CudaExecution", "cuda_plan"]

_ON_HOST = frozenset({"logits_to_keep"})
"""Inputs that decide a shape."""


class CudaExecution:
    """A session of ONNX Runtime on a GPU.

    Attributes:
        card: The GPU.
        inference: The loaded graph.
        recordings: CUDA graphs of the session's steps.
    """

    def __init__(self, card: Card, inference: onnxruntime.InferenceSession, recordings: Recordings) -> None:
        self.card = card
        self.inference = inference
        self.recordings = recordings
        self._device = OnnxRuntimeDevice([inference], "cuda", card.cuda, recordings)
        self._on_host = host_inputs(inference)

    @property
    def steps(self) -> str:
        """Whether steps are recorded and repeated, and if not, why."""
        problem = self.recordings.problem
        return "steps by CUDA graph" if problem is None else f"no CUDA graph: {problem}"

    @property
    def description(self) -> str:
        """The GPU, and how it executes steps."""
        return f"{self.card.cuda.name} ({self.steps})"

    def new_cache(self, manifest: Manifest, batch: int, capacity: int) -> DeviceCache:
        """As `Engine.new_cache`, in the GPU's memory. Raises InputError when there is no room for it."""
        self.card.check_session(batch, capacity)
        return DeviceCache(self._device, cuda_plan(manifest, self._on_host), manifest, batch, capacity)


def cuda_plan(manifest: Manifest, on_host: Collection[str] = _ON_HOST) -> BindingPlan:
    """Everything lies on the device but the inputs `on_host`, which the graph reads in the host's memory."""
    return plan_bindings(manifest, [(1, 1, manifest.prefill_max_tokens)], lambda told: told.name in on_host)
