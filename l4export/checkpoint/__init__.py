"""Checkpoints: what comes in, read lazily."""

from __future__ import annotations

from l4export.checkpoint.hf_checkpoint import Checkpoint, SourceTensor, open_checkpoint, read_config

__all__ = ["Checkpoint", "SourceTensor", "open_checkpoint", "read_config"]
