"""A checkpoint directory in Hugging Face layout, opened in milliseconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from l4export.checkpoint.checkpoint import Checkpoint
from l4export.checkpoint.hf_config import config_from_hf, possible_tokens
from l4export.checkpoint.hf_vision import vision_from_hf
from l4export.checkpoint.quantization_config import quantization_method, read_quantization
from l4export.checkpoint.small_files import open_small, read_small
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.unreadable import (
    absent_directory,
    absent_weights,
)
from l4export.errors import InputError, StorageError
from l4export.model.config import ModelConfig
from l4export.model.config_fields import Fields
from l4export.model.vision_config import VisionConfig
from l4export.storage.opened_file import OpenedFile
from l4export.storage.safetensors import TensorFile, parse_json_object

__all__ = ["open_checkpoint", "read_config", "read_method", "read_vision_config", "with_generation_config"]

_MAX_TENSORS = 2**18  # Maverick's experts one by one, each in four parts, are 80,000
_CONFIG, _SINGLE, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a directory with config.json and model.safetensors, or shards and their index; reads no weights.

    Raises `InputError` for anything missing, malformed or contradictory, `StorageError` when reading fails.
    """
    try:
        return _open(Path(path))
    except OSError as error:  # a directory that may not be entered, a name that is too long
        raise StorageError(f"{path}: cannot be opened ({error.strerror}); check its permissions and the disk") from None


def _open(path: Path) -> Checkpoint:
    if not path.is_dir():
        raise InputError(absent_directory(path))
    config_file, config_bytes, raw, config = _config(path / _CONFIG)
    weight_map = _weight_map(path)
    files: list[TensorFile] = []
    found: dict[str, SourceTensor] = {}
    for name in sorted(set(weight_map.values()) or {_SINGLE}):
        files.append(file := TensorFile(path / name))
        for entry in file.entries.values():
            if entry.name in found:
                other = found[entry.name].file_name
                raise InputError(f"{file.path}: tensor {entry.name!r} is in {other} too; remove one of the shards")
            found[entry.name] = SourceTensor(entry, file)
        if len(found) > _MAX_TENSORS:
            raise InputError(f"{path}: has more than {_MAX_TENSORS} tensors, more than any Llama 4 checkpoint needs")
    prefix = "language_model." if any(name.startswith("language_model.") for name in found) else ""
    if config.tie_word_embeddings and f"{prefix}lm_head.weight" in found:
        config = dataclasses.replace(config, tie_word_embeddings=False)  # a stored head wins, as in transformers
    config = with_generation_config(config, path / "generation_config.json")
    method = read_quantization(raw, found, path / _CONFIG)
    return Checkpoint(path, config, raw, found, prefix, tuple(files), config_file, method, config_bytes, weight_map)


def read_config(path: Path) -> ModelConfig:
    """The configuration alone, of a checkpoint directory or a config.json; weights need not be there.

    Raises `InputError` for anything missing or malformed, `StorageError` when reading fails.
    """
    return _read(path)[1]


def read_vision_config(path: Path) -> VisionConfig | None:
    """The vision tower of the same file, if it has a `vision_config`; whether there are weights for it is not asked.

    Raises as `read_config`, and for a tower that cannot be built.
    """
    raw, config = _read(path)
    if raw["model_type"] != "llama4" or raw.get("vision_config") is None:
        return None
    return vision_from_hf(raw, str(path), config.vocab_size)


def read_method(path: Path) -> str | None:
    """The method of quantisation that the same file names; whether there are quantised weights is not asked.

    Raises as `read_config`.
    """
    return quantization_method(_read(path)[0])


def _read(path: Path) -> tuple[dict[str, Any], ModelConfig]:
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(absent_directory(path))
        return _config(path / _CONFIG if path.is_dir() else path)[2:]
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk") from None


def _config(path: Path) -> tuple[OpenedFile, bytes, dict[str, Any], ModelConfig]:
    """The file, its bytes, the JSON object that they hold, and what it says."""
    if not path.exists():
        raise InputError(absent_weights(path.parent, _CONFIG))
    file = open_small(path)
    data = file.read()
    raw = parse_json_object(data, str(path))
    return file, data, raw, config_from_hf(raw, str(path))


def with_generation_config(config: ModelConfig, path: Path) -> ModelConfig:
    """The config with the stop tokens of generation_config.json, which transformers' `generate` obeys first."""
    if not path.is_file():
        return config
    eos = parse_json_object(read_small(path), str(path)).get("eos_token_id")
    if eos is None:
        return config
    ids = possible_tokens(
        Fields({}, str(path)), "eos_token_id", eos if isinstance(eos, list) else [eos], config.vocab_size
    )
    return dataclasses.replace(config, eos_token_ids=tuple(ids))


def _weight_map(path: Path) -> dict[str, str]:
    """The index's map from tensor to shard; empty for a single file, which wins over an index as in transformers.

    It only says which shards to open: merging and quantising leave entries for tensors that are in none of them.
    """
    if (path / "adapter_config.json").exists():
        raise InputError(absent_weights(path, _SINGLE))
    if (path / _SINGLE).exists():
        return {}
    if not (path / _INDEX).exists():
        raise InputError(absent_weights(path, _SINGLE))
    where = path / _INDEX
    weight_map = parse_json_object(read_small(where), str(where)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f"{where}: weight_map must map tensor names to file names; download the checkpoint again")
    for name in set(weight_map.values()):
        plain = name.endswith(".safetensors") and not any(c in name for c in "/\\\0") and name.isprintable()
        if not plain:
            raise InputError(f"{where}: {name[:100]!r} is not the plain name of a .safetensors file in the directory")
        if not (path / name).exists():
            raise InputError(f"{path}: missing shard {name!r}; download the checkpoint again")
    return weight_map
