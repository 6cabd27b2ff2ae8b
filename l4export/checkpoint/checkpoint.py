"""An opened checkpoint, of whatever layout: its weights are read piece by piece."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from l4export.checkpoint.adapter import Adapter
from l4export.checkpoint.hf_vision import vision_from_hf
from l4export.checkpoint.quantization_config import Quantization, quantization_method
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import Find, StoredWeight
from l4export.checkpoint.unreadable import (
    MAKE_TOKENIZER,
    extra_tensor,
    is_cache_scale,
    missing_tensor,
)
from l4export.checkpoint.weight_finder import WeightFinder
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.model.config_fields import show
from l4export.model.tensors import tensors, vision_tensors
from l4export.model.vision_config import VisionConfig
from l4export.model.weight_names import kind_of
from l4export.storage.mapped_tensors import MappedTensors
from l4export.storage.opened_file import OpenedFile
from l4export.storage.safetensors import HANDLED_DTYPES

__all__ = ["Checkpoint"]

_TOWER = ("vision_model.", "multi_modal_projector.")
_DTYPES: dict[str, Literal["float32", "float16", "bfloat16"]]
_DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"


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
        find = self._find
        found: dict[str, tuple[dict[str, None], list[int]]] = {}
        for name, shape in tensors(self.config).items():
            if weight := find(self.prefix + name, shape):
                formats, sizes = found.setdefault(kind_of(name), ({}, [0, 0]))
                formats.update(dict.fromkeys(weight.formats))
                sizes[0] += sum(stop - start for _, start, stop in (part.place for part in weight.parts))
                sizes[1] += math.prod(shape)
        return {kind: (tuple(formats), 8 * size / count) for kind, (formats, (size, count)) in found.items()}

    def is_quantized(self) -> bool:
        """Whether some weights are stored as codes."""
        return self.quantization is not None

    @property
    def named_dtype(self) -> Literal["float32", "float16", "bfloat16"]:
        """The dtype that config.json names for the model, which is what loaders give its parameters; else bfloat16."""
        text = self.raw_config.get("text_config")
        for fields in (self.raw_config, text if isinstance(text, Mapping) else {}):
            for name in ("dtype", "torch_dtype"):
                if (given := fields.get(name)) is not None:
                    return _DTYPES.get(str(given).removeprefix("torch."), "bfloat16")
        return "bfloat16"

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
        if weight := self._find(full, shape):
            return weight
        if file_name := self._index.get(full):
            raise InputError(
                f"{self.path / _INDEX}: tensor {full!r} is not in {file_name}; download the checkpoint again"
            )
        raise InputError(f"{self.path}: tensor {full!r} {missing_tensor(full, self.tensors)}")

    @property
    def _find(self) -> Find:
        """Finds the weights of the inventory."""
        return WeightFinder(self.tensors, self.quantization.schemes if self.quantization else ()).find

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
