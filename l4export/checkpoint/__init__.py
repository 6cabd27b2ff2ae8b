"""Checkpoints: what comes in, read lazily."""

from __future__ import annotations

from l4export.checkpoint.hf_checkpoint import Checkpoint, open_checkpoint, read_config, read_vision_config
from l4export.checkpoint.source_tensor import SourceTensor

__all__ = ["Checkpoint", "SourceTensor", "open_checkpoint", "read_config", "read_vision_config"]
