"""Opens a checkpoint in whichever layout it has: Hugging Face's, or Meta's own."""

from __future__ import annotations

from pathlib import Path

from l4export.checkpoint import hf_checkpoint
from l4export.checkpoint.hf_checkpoint import Checkpoint
from l4export.checkpoint.meta_checkpoint import (
    is_meta_folder,
    open_meta,
    read_meta_config,
    read_meta_vision_config,
)
from l4export.model.config import ModelConfig
from l4export.model.vision_config import VisionConfig

__all__ = ["open_checkpoint", "read_config", "read_vision_config"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a directory with config.json and safetensors, or with params.json and consolidated.NN.pth; read no weights.

    Raises `InputError` for anything missing, malformed or contradictory, `StorageError` when reading fails.
    """
    path = Path(path)
    return open_meta(path) if is_meta_folder(path) else hf_checkpoint.open_checkpoint(path)


def read_config(path: Path) -> ModelConfig:
    """The configuration alone, of a checkpoint directory or a config.json; weights need not be there.

    Raises `InputError` for anything missing or malformed, `StorageError` when reading fails.
    """
    path = Path(path)
    return read_meta_config(path) if is_meta_folder(path) else hf_checkpoint.read_config(path)


def read_vision_config(path: Path) -> VisionConfig | None:
    """The vision tower of the same file, if it describes one; whether there are weights for it is not asked.

    Raises as `read_config`, and for a tower that cannot be built.
    """
    path = Path(path)
    return read_meta_vision_config(path) if is_meta_folder(path) else hf_checkpoint.read_vision_config(path)
