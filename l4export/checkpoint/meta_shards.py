"""The files of a folder of Meta's: `consolidated.NN.pth`, the shard of each model-parallel rank, and their scales."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from l4export.checkpoint.source_tensor import SourceTensor
from l4export.errors import InputError
from l4export.storage.torch_zip import TorchFile

__all__ = ["MetaShards", "is_shard", "open_shards"]

_SHARD = re.compile(r"consolidated(?:\.(\d\d))?\.pth")
_SCALES = re.compile(r"(fp8|int4)_scales_(\d{1,2})\.pt")
_MOST = 16
_MAX_TENSORS = 2**16


@dataclass(frozen=True)
class MetaShards:
    """Opened shards, by rank.

    Attributes:
        path: The folder.
        files: Of the shards, and then of the scales.
        tensors: Of each rank, by their names.
        scales: Of each rank, by their names; empty where there are none.
        scales_kind: "fp8" or "int4"; None where there are none.
    """

    path: Path
    files: tuple[TorchFile, ...]
    tensors: tuple[dict[str, SourceTensor], ...]
    scales: tuple[dict[str, SourceTensor], ...]
    scales_kind: str | None

    def names(self) -> Iterable[str]:
        """Of all tensors, once each, in the order of the files."""
        return dict.fromkeys(name for tensors in self.tensors for name in tensors)

    def of_each_rank(self, name: str) -> list[SourceTensor] | None:
        """The tensors `name`, one a rank; None where no rank has one.

        Raises:
            InputError: some ranks have it and some do not.
        """
        found = [tensors[name] for tensors in self.tensors if name in tensors]
        if found and len(found) != len(self.tensors):
            lacks = next(rank for rank, tensors in enumerate(self.tensors) if name not in tensors)
            raise InputError(
                f"{self.files[lacks].path}: tensor {name!r} is missing, which other shards have; download it again"
            )
        return found or None


def is_shard(name: str) -> bool:
    """Whether a file is a shard, by its name."""
    return bool(_SHARD.fullmatch(name))


def open_shards(path: Path) -> MetaShards:
    """Open the shards of a folder, and their scales. Reads no weights.

    Raises:
        InputError: none is there, one is missing or too many are, or one cannot be read.
        StorageError: reading failed.
    """
    names = sorted(os.listdir(path))
    shards = {int(found[1] or 0): name for name in names if (found := _SHARD.fullmatch(name))}
    if not shards:
        raise InputError(f"{path}: consolidated.00.pth is missing, which params.json describes; download the weights")
    if len(shards) != sum(map(is_shard, names)):
        raise InputError(f"{path}: holds consolidated.pth and consolidated.00.pth; remove the one that is not meant")
    _check_ranks(path, shards, "consolidated.{:02d}.pth")
    scales = {kind: _scales(names, kind) for kind in ("fp8", "int4") if _scales(names, kind)}
    if len(scales) > 1:
        raise InputError(f"{path}: holds fp8_scales and int4_scales; remove those that the weights are not of")
    kind, of_rank = next(iter(scales.items()), (None, {}))
    if kind and set(of_rank) != set(shards):
        lacks = min(set(of_rank) ^ set(shards))
        raise InputError(f"{path}: {len(shards)} shards, and not as many scales: see {kind}_scales_{lacks}.pt")
    files = [TorchFile(path / each[rank]) for each in (shards, of_rank) for rank in sorted(each)]
    tensors = [{name: SourceTensor(entry, file) for name, entry in file.entries.items()} for file in files]
    if sum(map(len, tensors)) > _MAX_TENSORS:
        raise InputError(f"{path}: has more than {_MAX_TENSORS} tensors, more than any Llama 4 checkpoint needs")
    return MetaShards(path, tuple(files), tuple(tensors[: len(shards)]), tuple(tensors[len(shards) :]), kind)


def _scales(names: Iterable[str], kind: str) -> dict[int, str]:
    return {int(found[2]): name for name in names if (found := _SCALES.fullmatch(name)) and found[1] == kind}


def _check_ranks(path: Path, shards: dict[int, str], spelled: str) -> None:
    for rank in range(max(shards)):
        if rank not in shards:
            raise InputError(f"{path}: missing shard {spelled.format(rank)!r}; download the checkpoint again")
    if len(shards) > _MOST:
        raise InputError(f"{path}: has {len(shards)} shards; at most {_MOST} are read")
