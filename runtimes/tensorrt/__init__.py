"""Engines of TensorRT and TensorRT for RTX, on an NVIDIA GPU.

What a session binds is computed from the manifest (`plan`, `l4export.runtimes.cache.binding_plan`); sessions and caches
are those of every runtime (`l4export.runtimes.session`, `l4export.runtimes.cache.device_cache`). Only `cuda` and
`device` need a GPU.
"""

from __future__ import annotations

from l4export.runtimes.tensorrt.engine import TensorRTEngine

__all__ = ["TensorRTEngine"]
