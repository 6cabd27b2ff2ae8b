"""A folder of Meta's own layout: params.json and consolidated.NN.pth, whose weights are put together when read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from l4export.checkpoint.checkpoint import Checkpoint
from l4export.checkpoint.hf_checkpoint import with_generation_config
from l4export.checkpoint.hf_config import config_from_hf
from l4export.checkpoint.hf_vision import vision_from_hf
from l4export.checkpoint.meta_params import hf_config_of_params
from l4export.checkpoint.meta_shards import MetaShards, is_shard, open_shards
from l4export.checkpoint.meta_weights import MetaWeights, is_unused
from l4export.checkpoint.small_files import open_small
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import Find, StoredWeight
from l4export.errors import InputError, StorageError
from l4export.model.config import ModelConfig
from l4export.model.vision_config import VisionConfig
from l4export.storage.opened_file import OpenedFile
from l4export.storage.safetensors import parse_json_object

__all__ = ["MetaCheckpoint", "is_meta_folder", "open_meta", "read_meta_config", "read_meta_vision_config"]

PARAMS = "params.json"
_TOWER = ("vision_embeddings.", "vision_projection.")


@dataclass(frozen=True)
class MetaCheckpoint(Checkpoint):
    """An opened folder of Meta's. `tensors` are by file and name, and each is called as Meta calls it."""

    make_tokenizer: ClassVar[str] = "which l4export.checkpoint.write_tokenizer_json(FOLDER) makes of it"
    shards: MetaShards = field(kw_only=True)

    def is_plain(self) -> bool:
        """No weight is as transformers saves it."""
        return False

    def is_quantized(self) -> bool:
        """Whether there are scales."""
        return self.shards.scales_kind is not None

    def is_vision_plain(self) -> bool:
        """No weight is as transformers saves it."""
        return False

    def has_vision(self) -> bool:
        """Whether there are tensors of a vision tower."""
        return any(name.startswith(_TOWER) for name in self.shards.names())

    def vision_config(self) -> VisionConfig:
        """What params.json says of the vision tower; raises `InputError` where that is nothing, or wrong."""
        if "vision_config" not in self.raw_config:
            raise InputError(f"{self.path / PARAMS}: vision_args is missing, and the weights have a vision tower")
        return super().vision_config()

    def text_tensors(self) -> list[SourceTensor]:
        """The tensors of the text model, of every shard."""
        return [tensor for tensor in self.tensors.values() if not tensor.name.startswith(_TOWER)]

    def check_all_known(self, used: Collection[str]) -> None:
        """Refuse tensors of the text model that are not among those `used`; raises as `Checkpoint`."""
        for name in self.shards.names():
            if not name.startswith(_TOWER) and name not in used and not is_unused(name):
                raise InputError(
                    f"{self.path}: tensor {name!r} is no part of the model that {PARAMS} describes; they do not match"
                )

    def check_vision_known(self, used: Collection[str]) -> None:
        """Refuse tensors of the vision tower that are not among those `used`; raises as `Checkpoint`."""
        for name in self.shards.names():
            if name.startswith(_TOWER) and name not in used and not is_unused(name):
                raise InputError(
                    f"{self.path}: tensor {name!r} is no part of the vision tower that {PARAMS} describes; they do not "
                    "match, and --vision none builds without the tower"
                )

    def notes(self) -> list[str]:
        """One line for each thing that is ignored or assumed and that a user should know about."""
        found = super().notes()
        longest = self.config.max_position_embeddings
        found.append(f"{self.path / PARAMS}: does not say the longest context; {longest} tokens are taken")
        if not self.config.attn_temperature_tuning and not all(self.config.rope_layers):
            found.append(
                f"{self.path / PARAMS}: attn_temperature_tuning is not on, so it is off, as in Meta's program; from "
                f"{self.config.floor_scale:g} tokens on, the same model in Hugging Face layout has it on"
            )
        if kind := self.shards.scales_kind:
            found.append(f"{self.path}: weights have {kind}_scales; that activations are rounded is ignored")
        return found

    @property
    def _find(self) -> Find:
        """In the shards."""
        return MetaWeights(self.shards, self.config).find

    def _found(self, full: str, shape: tuple[int, ...]) -> StoredWeight:
        if weight := self._find(full, shape):
            return weight
        raise InputError(f"{self.path}: nothing is stored for weight {full!r}; {PARAMS} and the shards do not match")


def is_meta_folder(path: Path) -> bool:
    """Whether a folder is to be read as Meta's layout. Of a folder with both layouts, Hugging Face's is read."""
    names = set(os.listdir(path)) if path.is_dir() else set()
    weights = {"model.safetensors", "model.safetensors.index.json"}
    if "config.json" in names and names & weights:
        return False
    return any(map(is_shard, names)) or (PARAMS in names and not names & {"config.json", *weights})


def open_meta(path: Path) -> MetaCheckpoint:
    """Open a folder of Meta's; reads no weights.

    Raises:
        InputError: anything missing, malformed or contradictory.
        StorageError: reading failed.
    """
    try:
        file, data, raw, config = _params(path)
        shards = open_shards(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be opened ({error.strerror}); check its permissions and the disk") from None
    stop = with_generation_config(config, path / "generation_config.json")
    tensors = {
        f"{tensor.file_name}:{tensor.name}": tensor
        for of_file in (*shards.tensors, *shards.scales)
        for tensor in of_file.values()
    }
    return MetaCheckpoint(
        path=path,
        config=dataclasses.replace(config, eos_token_ids=stop.eos_token_ids),
        raw_config=raw,
        tensors=tensors,
        prefix="",
        files=shards.files,
        config_file=file,
        quantization=None,
        _config_bytes=data,
        _index={},
        shards=shards,
    )


def read_meta_config(path: Path) -> ModelConfig:
    """The text model of a folder of Meta's; weights need not be there. Raises as `open_meta`."""
    return _params(path)[3]


def read_meta_vision_config(path: Path) -> VisionConfig | None:
    """The vision tower that params.json describes, if it does. Raises as `open_meta`."""
    _, _, raw, config = _params(path)
    return vision_from_hf(raw, str(path / PARAMS), config.vocab_size) if "vision_config" in raw else None


def _params(path: Path) -> tuple[OpenedFile, bytes, dict[str, Any], ModelConfig]:
    """The file, its bytes, the config.json that they stand for, and what that says."""
    where = path / PARAMS
    if not where.exists():
        raise InputError(f"{path}: {PARAMS} is missing, which belongs to consolidated.00.pth; download it too")
    file = open_small(where)
    data = file.read()
    raw = hf_config_of_params(parse_json_object(data, str(where)), str(where))
    return file, data, raw, config_from_hf(raw, str(where))
