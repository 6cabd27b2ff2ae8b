"""A checkpoint directory in Hugging Face layout: opened in milliseconds, its weights read piece by piece."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from l4export.checkpoint.hf_config import config_from_hf
from l4export.errors import InputError, StorageError
from l4export.model.config import ModelConfig
from l4export.storage.opened_file import OpenedFile
from l4export.storage.safetensors import HANDLED_DTYPES, TensorEntry, TensorFile, parse_json_object

__all__ = ["Checkpoint", "SourceTensor", "open_checkpoint", "read_config"]

_PIECE = 32 * 2**20  # bytes of mapped source that one read may make resident at a time
_MAX_JSON = 64 * 2**20
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a checkpoint: its description now, its values when `read` asks for them."""

    entry: TensorEntry
    file: TensorFile = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The name in the checkpoint, prefix included."""
        return self.entry.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""
        return self.entry.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, float16 or `ml_dtypes.bfloat16`; raises `InputError` for others (`entry.dtype` names any)."""
        if self.entry.dtype not in HANDLED_DTYPES:
            known = ", ".join(HANDLED_DTYPES)
            raise InputError(
                f"{self.file.path}: tensor {self.name!r} has dtype {self.entry.dtype}; only {known} are supported"
            )
        return HANDLED_DTYPES[self.entry.dtype]

    @property
    def nbytes(self) -> int:
        """The stored size in bytes."""
        return self.entry.stop - self.entry.start

    @property
    def file_name(self) -> str:
        """The name of the file, in the checkpoint's directory, that holds the tensor."""
        return self.file.path.name

    def read(self, index: Index = ()) -> np.ndarray:
        """A C-contiguous copy of `tensor[index]`, where `index` is a tuple of integers and slices as in numpy.

        Beyond the copy, at most 32 MiB of mapped pages are resident at a time. Raises `InputError` if the file shrank,
        `IndexError` or `TypeError` for an index that numpy's basic indexing would not take.
        """
        if len(index) > len(self.shape):
            raise IndexError(f"{len(index)} indices for a tensor of {len(self.shape)} dimensions")
        if not all(isinstance(i, int | slice) for i in index):
            raise TypeError("an index is a tuple of integers and slices")
        # Bits instead of floats: copies between strided bfloat16 arrays are slow.
        bits = self.file.array(self.entry).view(f"u{self.dtype.itemsize}")
        full = index + (slice(None),) * (len(self.shape) - len(index))
        shape = [len(range(*i.indices(size))) for i, size in zip(full, self.shape, strict=True) if isinstance(i, slice)]
        out = np.empty(shape, bits.dtype)
        self._copy(bits, full, out)
        return out.view(self.dtype)

    def rows(self, index: Index, multiple: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """The matrix `tensor[index]` where it lies in the mapped file: pieces of its rows, each with its first row.

        `index` has integers, and slices of step 1, in bounds, for the last two axes. Pieces are cut at multiples of
        `multiple` rows so that at most about 32 MiB of mapped pages are resident; one is there until the next is asked
        for, and need not be aligned. Raises `InputError` if the file shrank.
        """
        rows, columns = index[-2:]
        assert isinstance(rows, slice)
        row_bytes = self.shape[-1] * self.dtype.itemsize
        batch = max(1, _PIECE // max(1, row_bytes * multiple)) * multiple
        for start in range(rows.start, rows.stop, batch):
            piece = self.file.array(self.entry)[index[:-2]][start : min(start + batch, rows.stop)]
            yield start - rows.start, piece[:, columns]
            if piece.size:
                self.file.release(piece)

    def _copy(self, source: np.ndarray, index: Index, out: np.ndarray) -> None:
        """`out[...] = source[index]`, releasing the pages of each piece of `source` once it is copied."""
        if source.nbytes <= _PIECE:
            out[...] = source[index]
            if source.size:
                self.file.release(source)
            return
        first, rest = index[0], index[1:]
        if isinstance(first, int):
            return self._copy(source[first, ...], rest, out)
        rows = range(*first.indices(len(source)))
        row_bytes = source.nbytes // len(source)
        if row_bytes > _PIECE:
            for i, row in enumerate(rows):
                self._copy(source[row, ...], rest, out[i, ...])
            return None
        batch = max(1, _PIECE // (row_bytes * abs(rows.step)))
        for i in range(0, len(rows), batch):
            part = rows[i : i + batch]
            low, high = min(part[0], part[-1]), max(part[0], part[-1])
            piece = source[low : high + 1]
            out[i : i + len(part)] = piece[(slice(None, None, rows.step), *rest)]
            self.file.release(piece)
        return None


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: config, tensors by name, and the files that hold them."""

    path: Path
    config: ModelConfig
    raw_config: dict[str, Any]
    tensors: Mapping[str, SourceTensor]
    prefix: str
    """What precedes the text model's tensor names: "language_model." in a multimodal checkpoint, else nothing."""
    files: tuple[TensorFile, ...]
    config_file: OpenedFile
    """config.json, as it was opened to be read."""
    _config_bytes: bytes = field(repr=False)

    def tensor(self, name: str, shape: tuple[int, ...]) -> SourceTensor:
        """The text model's tensor `name` (without prefix); `InputError` unless it has that shape and a float dtype."""
        full = self.prefix + name
        if full not in self.tensors:
            raise InputError(f"{self.path}: tensor {full!r} is missing; config.json and the weights do not match")
        tensor = self.tensors[full]
        if tensor.shape != tuple(shape):
            raise InputError(
                f"{tensor.file.path}: tensor {full!r} has shape {list(tensor.shape)}, expected {list(shape)}; "
                "config.json and the weights do not match"
            )
        _ = tensor.dtype
        return tensor

    def unexpected(self, used: Collection[str]) -> list[str]:
        """Tensors of the text model whose names (without prefix) are not among those `used`, in order.

        Rotary frequencies, which old checkpoints carry and config.json decides, do not count.
        """
        text = (f"{self.prefix}model.", f"{self.prefix}lm_head.")
        names = [name.removeprefix(self.prefix) for name in self.tensors if name.startswith(text)]
        return [name for name in names if name not in used and not name.endswith("rotary_emb.inv_freq")]

    def header_digest(self) -> str:
        """sha256 (hex) over config.json and every header: names, dtypes, shapes, offsets, file sizes; no weights."""
        digest = hashlib.sha256(len(self._config_bytes).to_bytes(8, "little") + self._config_bytes)
        for file in sorted(self.files, key=lambda file: file.path.name):
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
        raise InputError(f"{path}: not a directory; expected a checkpoint in Hugging Face layout")
    config_file, config_bytes, raw, config = _config(path / "config.json")
    weight_map = _weight_map(path)
    files = tuple(TensorFile(path / name) for name in sorted(set(weight_map.values()) or {_SINGLE}))
    tensors: dict[str, SourceTensor] = {}
    for file in files:
        for entry in file.entries.values():
            if entry.name in tensors:
                other = tensors[entry.name].file_name
                raise InputError(f"{file.path}: tensor {entry.name!r} is in {other} too; remove one of the shards")
            tensors[entry.name] = SourceTensor(entry, file)
    for name, file_name in weight_map.items():
        if name not in tensors or tensors[name].file_name != file_name:
            raise InputError(f"{path / _INDEX}: tensor {name!r} is not in {file_name}; download the checkpoint again")
    prefix = "language_model." if any(name.startswith("language_model.") for name in tensors) else ""
    if config.tie_word_embeddings and f"{prefix}lm_head.weight" in tensors:
        config = dataclasses.replace(config, tie_word_embeddings=False)  # a stored head wins, as in transformers
    config = _with_generation_config(config, path / "generation_config.json")
    return Checkpoint(path, config, raw, tensors, prefix, files, config_file, config_bytes)


def read_config(path: Path) -> ModelConfig:
    """The configuration alone, of a checkpoint directory or a config.json; weights need not be there.

    Raises `InputError` for anything missing or malformed, `StorageError` when reading fails.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file or directory; give a checkpoint directory or its config.json")
        return _config(path / "config.json" if path.is_dir() else path)[3]
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk") from None


def _config(path: Path) -> tuple[OpenedFile, bytes, dict[str, Any], ModelConfig]:
    """The file, its bytes, the JSON object that they hold, and what it says."""
    if not path.exists():
        raise InputError(f"{path.parent}: config.json is missing; expected a checkpoint in Hugging Face layout")
    file = _open_small(path)
    data = file.read()
    raw = parse_json_object(data, str(path))
    return file, data, raw, config_from_hf(raw, str(path))


def _with_generation_config(config: ModelConfig, path: Path) -> ModelConfig:
    """The config with the stop tokens of generation_config.json, which transformers' `generate` obeys first."""
    if not path.is_file():
        return config
    eos = parse_json_object(_read_small(path), str(path)).get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if any(type(token) is not int or not 0 <= token < config.vocab_size for token in ids):
        raise InputError(f"{path}: eos_token_id must hold ids from 0 to {config.vocab_size - 1}")
    return dataclasses.replace(config, eos_token_ids=tuple(ids)) if ids else config


def _weight_map(path: Path) -> dict[str, str]:
    """The index's map from tensor to shard; empty for a single file, which wins over an index as in transformers."""
    if (path / _SINGLE).exists():
        return {}
    if not (path / _INDEX).exists():
        if pickles := sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pth", ".pt", ".ckpt")):
            raise InputError(
                f"{path}: {pickles[0]!r} is a pickle file, which is never read (it can run code); "
                "convert the checkpoint to safetensors"
            )
        raise InputError(f"{path}: neither {_SINGLE} nor {_INDEX}; expected a checkpoint in Hugging Face layout")
    where = path / _INDEX
    weight_map = parse_json_object(_read_small(where), str(where)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f"{where}: weight_map must map tensor names to file names; download the checkpoint again")
    for name in set(weight_map.values()):
        plain = name.endswith(".safetensors") and not any(c in name for c in "/\\\0") and name.isprintable()
        if not plain:
            raise InputError(f"{where}: {name[:100]!r} is not the plain name of a .safetensors file in the directory")
        if not (path / name).exists():
            raise InputError(f"{path}: missing shard {name!r}; download the checkpoint again")
    return weight_map


def _read_small(path: Path) -> bytes:
    """A JSON file of bounded size."""
    return _open_small(path).read()


def _open_small(path: Path) -> OpenedFile:
    if not path.is_file() or (file := OpenedFile(path)).size > _MAX_JSON:
        raise InputError(f"{path}: not a regular file of at most {_MAX_JSON // 2**20} MiB; download it again")
    return file
