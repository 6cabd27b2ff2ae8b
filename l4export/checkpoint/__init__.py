"""Checkpoints: what comes in, read lazily."""

from __future__ import annotations

from l4export.checkpoint.checkpoint import Checkpoint
from l4export.checkpoint.meta_tokenizer import write_tokenizer_json
from l4export.checkpoint.opening import open_checkpoint, read_config, read_method, read_vision_config
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import StoredWeight

__all__ = [
    "Checkpoint",
    "SourceTensor",
    "StoredWeight",
    "open_checkpoint",
    "read_config",
    "read_method",
    "read_vision_config",
    "write_tokenizer_json",
]
