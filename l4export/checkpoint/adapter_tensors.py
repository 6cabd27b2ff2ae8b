"""The tensors of an adapter's file, in groups: the matrices of each module, and weights that were saved as a whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from l4export.checkpoint.adapter_config import AdapterConfig
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.errors import InputError
from l4export.storage.safetensors import TensorFile

__all__ = ["CONFIG", "OTHER_MODEL", "WEIGHTS", "AdapterTensors", "Parts"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OTHER_MODEL = "the adapter is for another model"

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.weight)?")
_PIECE = 32 * 2**20  # bytes that are looked at at a time

Parts = Mapping[str, SourceTensor]
"""The tensors of a module by what they are, such as `lora_A`."""


@dataclass(frozen=True)
class _AdapterTensor(SourceTensor):
    """A tensor of an adapter, whose file is told from those of the checkpoint and of other adapters by a number."""

    number: int = 0

    @property
    def file_name(self) -> str:
        """The file's name among the sources of an engine."""
        return f"{WEIGHTS}.{self.number}"


class AdapterTensors:
    """The tensors of an adapter in groups.

    Args:
        file: The file, opened.
        number: The adapter's place in the order of adapters.
        config: What its config says.

    Attributes:
        modules: Module, without prefix -> (its path in the model that was trained, its tensors by what they are).
        whole: Weight, without prefix -> the tensor that was saved.
        used: Module or parameter as it was trained -> its rank and alpha.
    """

    def __init__(self, file: TensorFile, number: int, config: AdapterConfig) -> None:
        self.path, self._config = file.path, config
        self._all = [_AdapterTensor(entry, file, number) for entry in file.entries.values()]
        self.modules: dict[str, tuple[str, dict[str, SourceTensor]]] = {}
        self.whole: dict[str, SourceTensor] = {}
        self.used: dict[str, tuple[int, float]] = {}
        for tensor in self._all:
            _ = tensor.dtype  # refuses what is not of floats
            path = tensor.name.removeprefix(_PREFIX)
            match = _FACTOR.fullmatch(path)
            if path == tensor.name:
                raise self.homeless(tensor)
            if match:
                _, parts = self.modules.setdefault(_without_prefix(match[1]), (match[1], {}))
                self._put(parts, match[2], tensor)
            else:  # of an embedding that has matrices too, PEFT saves the base
                self._put(self.whole, _without_prefix(path).replace(".base_layer.", "."), tensor)

    def homeless(self, tensor: SourceTensor) -> InputError:
        """The error for a tensor that no weight is made of."""
        return InputError(f"{self.path}: tensor {tensor.name[:200]!r} belongs to no weight of the model; {OTHER_MODEL}")

    def take(
        self, target: str, parts: Parts, a: str, b: str, experts: int = 1
    ) -> tuple[SourceTensor, SourceTensor, float]:
        """A, B and the scale of what was trained as `target`, whose rank must be the config's."""
        some = next(iter(parts.values()))
        for part in (a, b):
            if part not in parts:
                raise InputError(f"{self.path}: {some.name!r} has no {part} beside it; is the file complete?")
        if others := parts.keys() - {a, b, "lora_magnitude_vector"}:
            raise self.homeless(parts[min(others)])
        if target in self.used:
            raise InputError(f"{self.path}: {some.name!r} is a second change of {target}; an adapter has one")
        rank = self._config.rank_of(target)
        shapes = parts[a].shape, parts[b].shape
        if any(len(shape) != 2 for shape in shapes) or not shapes[0][0] == shapes[1][1] == rank * experts:
            raise InputError(
                f"{self.path}: {some.name!r}: {a} {list(shapes[0])} and {b} {list(shapes[1])} are not of the rank "
                f"{rank} that {CONFIG} gives" + (f" to each of {experts} experts" if experts > 1 else "")
            )
        self.used[target] = rank, self._config.alpha_of(target)
        return parts[a], parts[b], self._config.scale_of(target)

    def check_finite(self) -> None:
        """Read every tensor; raises `InputError` for one with NaN or infinite elements."""
        for tensor in self._all:
            _check_finite(tensor)

    def _put(self, group: dict[str, SourceTensor], key: str, tensor: SourceTensor) -> None:
        if key in group:
            raise InputError(
                f"{self.path}: {tensor.name[:200]!r} is the same as {group[key].name[:200]!r}; remove one of them"
            )
        group[key] = tensor


def _without_prefix(path: str) -> str:
    return path.removeprefix("language_model.")


def _check_finite(tensor: SourceTensor) -> None:
    row_bytes = tensor.nbytes // max(1, tensor.shape[0]) if tensor.shape else 0
    step = max(1, _PIECE // max(1, row_bytes))
    for start in range(0, tensor.shape[0] if tensor.shape else 0, step):
        if not np.isfinite(tensor.read((slice(start, start + step),)).astype(np.float32)).all():
            raise InputError(f"{tensor.file.path}: tensor {tensor.name!r} has NaN or infinite elements")
