"""Checkpoints in Hugging Face layout: read lazily, written in a stream."""

from __future__ import annotations

from l4export.checkpoint.checkpoint import Checkpoint, SourceTensor, open_checkpoint, read_config
from l4export.checkpoint.safetensors import TensorEntry, TensorFile, read_header
from l4export.checkpoint.safetensors_writer import write_safetensors

__all__ = [
    "Checkpoint",
    "SourceTensor",
    "TensorEntry",
    "TensorFile",
    "open_checkpoint",
    "read_config",
    "read_header",
    "write_safetensors",
]
