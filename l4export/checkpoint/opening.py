"""Opens a checkpoint in whichever layout it has: Hugging Face's, or Meta's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from l4export.checkpoint import hf_checkpoint
from l4export.checkpoint.adapter import Adapter, open_adapter
from l4export.checkpoint.checkpoint import Checkpoint
from l4export.checkpoint.meta_checkpoint import (
    is_meta_folder,
    open_meta,
    read_meta_config,
    read_meta_vision_config,
)
from l4export.model.config import ModelConfig
from l4export.model.tensors import tensors, vision_tensors
from l4export.model.vision_config import VisionConfig

__all__ = ["open_checkpoint", "read_config", "read_method", "read_vision_config"]


def open_checkpoint(path: Path, adapters: Sequence[Path] = ()) -> Checkpoint:
    """Open a directory with config.json and safetensors, or with params.json and consolidated.NN.pth; read no weights.

    The adapters (directories that PEFT saved) are merged into its weights, in this order, when these are read.

    Raises `InputError` for anything missing, malformed or contradictory, `StorageError` when reading fails.
    """
    path = Path(path)
    checkpoint = open_meta(path) if is_meta_folder(path) else hf_checkpoint.open_checkpoint(path)
    return dataclasses.replace(checkpoint, adapters=_opened(checkpoint, adapters)) if adapters else checkpoint


def _opened(checkpoint: Checkpoint, paths: Sequence[Path]) -> tuple[Adapter, ...]:
    config = checkpoint.config
    weights = tensors(config)
    if checkpoint.has_vision():
        weights |= vision_tensors(checkpoint.vision_config(), config.hidden_size)
    opened = (
        open_adapter(Path(path), number, weights, config.tie_word_embeddings) for number, path in enumerate(paths, 1)
    )
    return tuple(opened)


def read_config(path: Path) -> ModelConfig:
    """The configuration alone, of a checkpoint directory or a config.json; weights need not be there.

    Raises `InputError` for anything missing or malformed, `StorageError` when reading fails.
    """
    path = Path(path)
    return read_meta_config(path) if is_meta_folder(path) else hf_checkpoint.read_config(path)


def read_method(path: Path) -> str | None:
    """The method of quantisation that the same file names; whether there are quantised weights is not asked.

    Raises as `read_config`.
    """
    path = Path(path)
    return None if is_meta_folder(path) else hf_checkpoint.read_method(path)


def read_vision_config(path: Path) -> VisionConfig | None:
    """The vision tower of the same file, if it describes one; whether there are weights for it is not asked.

    Raises as `read_config`, and for a tower that cannot be built.
    """
    path = Path(path)
    return read_meta_vision_config(path) if is_meta_folder(path) else hf_checkpoint.read_vision_config(path)
