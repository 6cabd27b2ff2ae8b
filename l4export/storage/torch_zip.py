"""Reads state dicts that torch.save wrote: the tensors as views of a memory map, the pickle as a mere description.

The format [PyTorch, torch/serialization.py and caffe2/serialize/inline_container.h]: a zip archive of stored entries
within one folder. `data.pkl` is the pickle of the state dict, whose storages are named by keys; `data/KEY` has the
bytes of each, in the order that `byteorder` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from l4export.errors import InputError, printable
from l4export.storage.foreign_files import foreign_kind
from l4export.storage.mapped_tensors import MappedTensors, TensorEntry
from l4export.storage.opened_file import OpenedFile
from l4export.storage.safetensors import DTYPE_BITS
from l4export.storage.state_dict_pickle import PickledTensor, read_state_dict
from l4export.storage.zip_entries import ZipEntry, read_zip_entries

__all__ = ["TorchFile"]

_MAX_PICKLE = 64 * 2**20


class TorchFile(MappedTensors):
    """A state dict of torch.save, mapped into memory read-only. Nothing in it is executed.

    Raises:
        InputError: another file, a damaged one, or one with more in its pickle than a state dict of tensors.
        StorageError: reading failed.
    """

    def __init__(self, path: Path) -> None:
        opened = OpenedFile(path)
        super().__init__(opened, _entries(opened))


def _entries(file: OpenedFile) -> dict[str, TensorEntry]:
    """The tensors by name, in the order of their bytes."""
    head = file.read_at(0, min(file.size, 64))
    if not head.startswith(b"PK\3\4"):
        kind = foreign_kind(head) or "is no file of torch.save; download it again"
        raise InputError(f"{file.path}: {kind}")
    stored = _folder(file)
    if (order := stored.get("byteorder")) and file.read_at(order.start, min(order.stop - order.start, 9)) != b"little":
        raise InputError(f"{file.path}: its numbers are not little-endian; save it again on another machine")
    pickle = stored["data.pkl"]
    if pickle.stop - pickle.start > _MAX_PICKLE:
        raise InputError(f"{file.path}: its pickle is larger than {_MAX_PICKLE >> 20} MiB; save the state dict alone")
    tensors = read_state_dict(file.read_at(pickle.start, pickle.stop - pickle.start), str(file.path))
    entries = [_entry(file.path, name, tensor, stored) for name, tensor in tensors.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    return {entry.name: entry for entry in entries}


def _folder(file: OpenedFile) -> Mapping[str, ZipEntry]:
    """The archive's entries, by their names within its one folder."""
    entries = read_zip_entries(file)
    folders = {name.partition("/")[0] for name in entries}
    found = {name.partition("/")[2]: entry for name, entry in entries.items()}
    if len(folders) != 1 or "data.pkl" not in found:
        raise InputError(f"{file.path}: is a zip archive, but not of torch.save: it has no one folder with a data.pkl")
    return found


def _entry(path: Path, name: str, tensor: PickledTensor, stored: Mapping[str, ZipEntry]) -> TensorEntry:
    """Where a tensor's bytes are; checked to lie within its storage."""

    def refuse(problem: str) -> InputError:
        return InputError(f"{path}: tensor {printable(name)[:200]!r}: {problem}; download or save the file again")

    if not name.isprintable() or len(name) > 1000:
        raise refuse("a name that cannot be printed")
    if not (storage := stored.get(f"data/{tensor.storage}")):
        raise refuse(f"its storage {printable(tensor.storage)[:40]!r} is missing")
    width, there = DTYPE_BITS[tensor.dtype] // 8, storage.stop - storage.start
    if tensor.storage_size * (1 if tensor.in_bytes else width) != there:
        raise refuse(f"its storage should have {tensor.storage_size} elements, and has {there} bytes")
    steps = [(stride, size) for stride, size in zip(tensor.strides, tensor.shape, strict=True) if size > 1]
    span = 0  # elements from the first to the last of the dimensions so far
    for stride, size in sorted(steps):
        if stride <= span:
            raise refuse(f"shape {list(tensor.shape)} and strides {list(tensor.strides)} overlap")
        span += (size - 1) * stride
    count = 0 if 0 in tensor.shape else span + 1
    if (tensor.offset + count) * width > there:
        raise refuse(f"shape {list(tensor.shape)} at {tensor.offset} ends beyond its storage")
    start = storage.start + tensor.offset * width
    strides = None if _is_row_major(tensor) else tensor.strides
    return TensorEntry(name, tensor.dtype, tensor.shape, start, start + count * width, strides)


def _is_row_major(tensor: PickledTensor) -> bool:
    expected = 1
    for stride, size in zip(reversed(tensor.strides), reversed(tensor.shape), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
