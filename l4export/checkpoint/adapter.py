"""An adapter directory of PEFT, opened, checked against the model that it is for, and merged on the way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l4export.checkpoint.adapter_changes import Change, find_changes
from l4export.checkpoint.adapter_config import AdapterConfig, parse_adapter_config
from l4export.checkpoint.adapter_tensors import CONFIG, WEIGHTS, AdapterTensors
from l4export.checkpoint.small_files import open_small
from l4export.checkpoint.stored_weight import StoredWeight
from l4export.errors import InputError
from l4export.model.weight_names import KINDS, kind_of
from l4export.storage.opened_file import OpenedFile
from l4export.storage.safetensors import TensorFile, parse_json_object

__all__ = ["ADAPTER_FILE", "Adapter", "open_adapter"]

ADAPTER_FILE = re.compile(r"adapter_(config\.json|model\.safetensors)\.\d+")
"""Names of adapters' files among the sources of an engine: each with the adapter's place in the order. No file of a
checkpoint is called so."""

_TOWER = "vision tower"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Adapter:
    """An opened adapter that fits its model.

    Attributes:
        path: Its directory.
        config: What adapter_config.json says.
        config_bytes: That file.
        files: Its two files by their names among the sources of an engine.
        weights: The file with the tensors.
    """

    path: Path
    config: AdapterConfig
    config_bytes: bytes = field(repr=False)
    files: Mapping[str, OpenedFile]
    weights: TensorFile = field(repr=False)
    _changes: Mapping[str, Sequence[Change]] = field(repr=False)
    _used: Mapping[str, tuple[int, float]] = field(repr=False)

    @property
    def changed(self) -> tuple[str, ...]:
        """The names of the weights that it changes (without prefix), in the model's order."""
        return tuple(self._changes)

    def merged(self, name: str, stored: StoredWeight) -> StoredWeight:
        """The weight `name` (without prefix), of which the model has `stored`, with the adapter merged into it."""
        for change in self._changes.get(name, ()):
            stored = change(stored)
        return stored

    def to_dict(self) -> dict[str, Any]:
        """What it is, for a manifest: name, type, ranks, alphas, the kinds of weights that it changes, how many."""
        kinds = {_kind(name) for name in self.changed}
        return {
            "name": self.path.resolve().name,
            "type": ("rank-stabilised " if self.config.stabilised else "") + ("DoRA" if self.config.dora else "LoRA"),
            "rank": _one_or_all(rank for rank, _ in self._used.values()),
            "alpha": _one_or_all(alpha for _, alpha in self._used.values()),
            "changes": [kind for kind in (*KINDS, _TOWER) if kind in kinds],
            "weights": len(self.changed),
        }


def _kind(name: str) -> str:
    return kind_of(name) if name.startswith(("model.", "lm_head.")) else _TOWER


def _one_or_all(values: Iterable[float]) -> float | list[float]:
    found = sorted(set(values))
    return found[0] if len(found) == 1 else found


def open_adapter(path: Path, number: int, model: Mapping[str, Shape], tied: bool) -> Adapter:
    """Open a directory that PEFT's `save_pretrained` wrote. Its tensors are read once, to find NaN.

    Args:
        path: The directory.
        number: Its place in the order of adapters, from 1.
        model: Names (without prefix) and shapes of all weights of the model that it is merged into.
        tied: Whether the model's head is its embedding.

    Raises:
        InputError: no such adapter, one that is not read, one for another model, or one that is not complete.
        StorageError: reading failed.
    """
    if not (path / CONFIG).exists():
        raise InputError(f"--adapter {path}: {CONFIG} is missing; give a directory that PEFT saved")
    config_file = open_small(path / CONFIG)
    config_bytes = config_file.read()
    config = parse_adapter_config(parse_json_object(config_bytes, str(config_file.path)), config_file.path)
    if not (path / WEIGHTS).exists():
        pickle = "; adapter_model.bin is a pickle, which is never read: save it as safetensors"
        missing = pickle if (path / "adapter_model.bin").exists() else "; is the download complete?"
        raise InputError(f"--adapter {path}: {WEIGHTS} is missing{missing}")
    file = TensorFile(path / WEIGHTS)
    tensors = AdapterTensors(file, number, config)
    changes = find_changes(tensors, config, model, tied)
    tensors.check_finite()
    files = {f"{CONFIG}.{number}": config_file, f"{WEIGHTS}.{number}": file.opened}
    ordered = {name: changes[name] for name in model if name in changes}
    return Adapter(path, config, config_bytes, files, file, ordered, tensors.used)
