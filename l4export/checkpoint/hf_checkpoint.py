"""A checkpoint directory in Hugging Face layout: opened in milliseconds, its weights read piece by piece."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from l4export.checkpoint.adapter import Adapter
from l4export.checkpoint.hf_config import config_from_hf, possible_tokens
from l4export.checkpoint.hf_vision import vision_from_hf
from l4export.checkpoint.quantization_config import Quantization, quantization_method, read_quantization
from l4export.checkpoint.small_files import open_small, read_small
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import StoredWeight
from l4export.checkpoint.unreadable import (
    MAKE_TOKENIZER,
    absent_directory,
    absent_weights,
    extra_tensor,
    is_cache_scale,
    missing_tensor,
)
from l4export.checkpoint.weight_finder import WeightFinder
from l4export.errors import InputError, StorageError
from l4export.model.config import ModelConfig
from l4export.model.config_fields import Fields, show
from l4export.model.tensors import tensors, vision_tensors
from l4export.model.vision_config import VisionConfig
from l4export.model.weight_names import kind_of
from l4export.storage.mapped_tensors import MappedTensors
from l4export.storage.opened_file import OpenedFile
from l4export.storage.safetensors import HANDLED_DTYPES, TensorFile, parse_json_object

__all__ = [
    "Checkpoint",
    "SourceTensor",
    "open_checkpoint",
    "read_config",
    "read_vision_config",
    "with_generation_config",
]

_MAX_TENSORS = 2**18  # Maverick's experts one by one, each in four parts, are 80,000
_TOWER = ("vision_model.", "multi_modal_projector.")
_CONFIG, _SINGLE, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: config, tensors by name, and the files that hold them."""

    path: Path
    config: ModelConfig
    raw_config: dict[str, Any]
    tensors: Mapping[str, SourceTensor]
    prefix: str
    """The prefix of the text model's tensor names: "language_model." in a multimodal checkpoint, else nothing."""
    files: tuple[MappedTensors, ...]
    make_tokenizer: ClassVar[str] = MAKE_TOKENIZER
    config_file: OpenedFile
    """config.json, as it was opened to be read."""
    quantization: Quantization | None
    """How weights are quantised; None where all are floats."""
    _config_bytes: bytes = field(repr=False)
    _index: Mapping[str, str] = field(repr=False)
    adapters: tuple[Adapter, ...] = ()
    """What is merged into the weights, in this order."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        """The text model's weight `name` (without prefix), in whatever form it is stored, with the adapters merged.

        Raises:
            InputError: nothing is stored for it, or something of another shape or of no float dtype.
        """
        return self._stored(self.prefix + name, shape)

    def vision_tensor(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        """The vision tower's weight `name`; raises as `tensor`."""
        return self._stored(name, shape)

    def is_plain(self) -> bool:
        """Whether the text model's weights are floats under their own names, as transformers saves them, unadapted."""
        return not self.adapters and self._are_floats(self.prefix + name for name in tensors(self.config))

    def formats(self) -> dict[str, tuple[tuple[str, ...], float]]:
        """For each kind of weight (`l4export.model.weight_names.KINDS`): how it is stored, and in bits a weight.

        The bits are those of all tensors that it is made of. Weights that are not there do not count.

        Raises:
            InputError: a weight of another shape, or one that lacks a part.
        """
        finder = self._finder()
        found: dict[str, tuple[dict[str, None], list[int]]] = {}
        for name, shape in tensors(self.config).items():
            if weight := finder.find(self.prefix + name, shape):
                formats, sizes = found.setdefault(kind_of(name), ({}, [0, 0]))
                formats.update(dict.fromkeys(weight.formats))
                sizes[0] += sum(stop - start for _, start, stop in (part.place for part in weight.parts))
                sizes[1] += math.prod(shape)
        return {kind: (tuple(formats), 8 * size / count) for kind, (formats, (size, count)) in found.items()}

    def is_vision_plain(self) -> bool:
        """The same for the vision tower."""
        return not self.adapters and self._are_floats(vision_tensors(self.vision_config(), self.config.hidden_size))

    def _are_floats(self, names: Iterable[str]) -> bool:
        found = map(self.tensors.get, names)
        return all(tensor and tensor.entry.dtype in HANDLED_DTYPES for tensor in found)

    def has_vision(self) -> bool:
        """Whether there are tensors of a vision tower."""
        return any(name.startswith(_TOWER) for name in self.tensors)

    def vision_config(self) -> VisionConfig:
        """What config.json says of the vision tower.

        Raises:
            InputError: a field of a wrong type or range, or one that contradicts another.
        """
        return vision_from_hf(self.raw_config, str(self.config_file.path), self.config.vocab_size)

    def _stored(self, full: str, shape: tuple[int, ...]) -> StoredWeight:
        weight = self._found(full, shape)
        for adapter in self.adapters:
            weight = adapter.merged(full.removeprefix(self.prefix), weight)
        return weight

    def _found(self, full: str, shape: tuple[int, ...]) -> StoredWeight:
        """What the checkpoint itself stores."""
        if weight := self._finder().find(full, shape):
            return weight
        if file_name := self._index.get(full):
            raise InputError(
                f"{self.path / _INDEX}: tensor {full!r} is not in {file_name}; download the checkpoint again"
            )
        raise InputError(f"{self.path}: tensor {full!r} {missing_tensor(full, self.tensors)}")

    def _finder(self) -> WeightFinder:
        return WeightFinder(self.tensors, self.quantization.schemes if self.quantization else ())

    def check_all_known(self, used: Collection[str]) -> None:
        """Refuse tensors of the text model whose names (without prefix) are not among those `used`.

        Two kinds do not count: rotary frequencies, which old checkpoints carry although config.json decides them, and
        the scales of another program's cache.

        Raises:
            InputError: there is such a tensor.
        """
        for name in self._text_names():
            if name not in used and not name.endswith("rotary_emb.inv_freq") and not is_cache_scale(name):
                raise InputError(
                    f"{self.path}: tensor {self.prefix + name!r} {extra_tensor(name, self.config.num_hidden_layers)}"
                )

    def check_vision_known(self, used: Collection[str]) -> None:
        """Refuse tensors of the vision tower whose names are not among those `used`.

        Raises:
            InputError: there is such a tensor.
        """
        for name in self.tensors:
            if name.startswith(_TOWER) and name not in used:
                raise InputError(
                    f"{self.path}: tensor {name!r} is no part of the vision tower that config.json describes; "
                    "config.json and the weights do not match, and --vision none builds without the tower"
                )

    def notes(self) -> list[str]:
        """One line for each thing that is ignored and that a user should know about."""
        found = []
        if self.quantization:
            found.append(f"{self.path}: {self.quantization.note(self.tensors.values())}")
        elif method := quantization_method(self.raw_config):
            found.append(f"{self.path / _CONFIG}: its quantization_config ({method}) is ignored: all weights are float")
        if scales := [name for name in self._text_names() if is_cache_scale(name)]:
            found.append(
                f"{self.path}: {len(scales)} scales of a quantised KV cache are ignored, such as {scales[0]!r}"
            )
        taken = {file.path.name for file in self.files}
        if shards := sorted({file.name for file in self.path.glob("consolidated*.pth")} - taken):
            found.append(f"{self.path}: {shards[0]!r} is not read: {self.files[0].path.name} and config.json are taken")
        if (self.path / "tokenizer.model").exists() and not (self.path / "tokenizer.json").exists():
            found.append(
                f"{self.path}: tokenizer.model is not read; text needs a tokenizer.json, {self.make_tokenizer}"
            )
        return [*found, *self._notes_on_adapters()]

    def _notes_on_adapters(self) -> list[str]:
        ours = self.raw_config.get("_name_or_path")
        return [
            f"{adapter.path}: was trained on {show(adapter.config.base)}, and config.json calls this model {show(ours)}"
            for adapter in self.adapters
            if ours and adapter.config.base and ours != adapter.config.base
        ]

    def text_tensors(self) -> list[SourceTensor]:
        """The text model's tensors, in order."""
        return [self.tensors[self.prefix + name] for name in self._text_names()]

    def _text_names(self) -> list[str]:
        """The text model's tensors, without prefix, in order."""
        text = (f"{self.prefix}model.", f"{self.prefix}lm_head.")
        return [name.removeprefix(self.prefix) for name in self.tensors if name.startswith(text)]

    def header_digest(self) -> str:
        """sha256 (hex) over config.json and every header: names, dtypes, shapes, offsets, file sizes; no weights.

        Those of adapters too.
        """
        digest = hashlib.sha256()
        for data in (self._config_bytes, *(adapter.config_bytes for adapter in self.adapters)):
            digest.update(len(data).to_bytes(8, "little") + data)
        files = sorted(self.files, key=lambda file: file.path.name)
        for file in (*files, *(adapter.weights for adapter in self.adapters)):
            entries = [[e.name, e.dtype, e.shape, e.start, e.stop] for e in file.entries.values()]
            digest.update(json.dumps([file.path.name, file.size, entries]).encode() + b"\n")
        return digest.hexdigest()


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
