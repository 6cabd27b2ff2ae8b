"""Files of tensors, mapped into memory: what the formats have in common once their headers are read."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.lib.array_utils import byte_bounds

from l4export.errors import InputError, StorageError
from l4export.storage.opened_file import OpenedFile

__all__ = ["ARRAY_DTYPES", "HANDLED_DTYPES", "MappedTensors", "TensorEntry"]

HANDLED_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes that weights may have, as numpy sees them."""

_AROUND = 2 * 2**20
"""What is given back begins and ends at multiples of so many bytes. With a page Linux maps those around it: 64 KiB, or
all of a large folio of its cache. What was read just before is mapped again by that."""


ARRAY_DTYPES: dict[str, np.dtype[Any]] = {
    **HANDLED_DTYPES,
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
"""The dtypes that a file is read in."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: dtype as safetensors spells it, and absolute byte offsets in the file.

    `strides` counts elements; None: row-major without gaps, as every tensor of a safetensors file is.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    strides: tuple[int, ...] | None = None


class MappedTensors:
    """An opened file of tensors, mapped into memory read-only.

    Mapped pages that were read count in the process's resident memory until `release` gives them back.

    Attributes:
        opened: The file: what is mapped is what it reads.
        entries: The tensors by name, in the order of their bytes. Each was found to lie within the file.
    """

    def __init__(self, opened: OpenedFile, entries: Mapping[str, TensorEntry]) -> None:
        self.opened, self.entries = opened, entries
        try:
            self._map = mmap.mmap(opened.descriptor, opened.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file shrank a moment ago
            raise StorageError(f"{opened.path}: cannot be mapped ({error}); check the file system") from None
        self._bytes = np.frombuffer(self._map, np.uint8)

    @property
    def path(self) -> Path:
        """Where it was opened."""
        return self.opened.path

    @property
    def size(self) -> int:
        """In bytes, when it was opened."""
        return self.opened.size

    def array(self, entry: TensorEntry) -> np.ndarray:
        """A read-only view of the tensor, in one of `ARRAY_DTYPES`, that copies nothing.

        Raises `InputError` for other dtypes, and when the file shrank since it was opened: reading the lost pages
        would kill the process.
        """
        if entry.dtype not in ARRAY_DTYPES:
            known = ", ".join(ARRAY_DTYPES)
            raise InputError(
                f"{self.path}: tensor {entry.name!r} has dtype {entry.dtype}; only {known} are supported, convert it"
            )
        if (now := os.fstat(self.opened.descriptor).st_size) < self.size:
            raise InputError(
                f"{self.path}: shrank from {self.size} to {now} bytes while open; download or convert the file again"
            )
        dtype = ARRAY_DTYPES[entry.dtype]
        # The start of a tensor need not be aligned to its elements: numpy copes, on x86 at no cost.
        if entry.strides is None:
            return self._bytes[entry.start : entry.stop].view(dtype).reshape(entry.shape)
        strides = tuple(stride * dtype.itemsize for stride in entry.strides)
        return np.ndarray(entry.shape, dtype, self._bytes[entry.start : entry.stop].data, 0, strides)

    def announce(self, view: np.ndarray) -> None:
        """Say that `view` (of `array`) is about to be read; see `OpenedFile.announce`."""
        if view.size:
            self.opened.announce(self._bounds(view)[1])

    def release(self, view: np.ndarray) -> None:
        """Tells the kernel that the pages under `view` (of `array`) are not needed; reading them again is allowed.

        Those around them are given back too: of thousands of tensors they would add up.
        """
        low, high = self._bounds(view)
        low, high = low - low % _AROUND, min(high + -high % _AROUND, len(self._map))
        if high > low:
            self._map.madvise(mmap.MADV_DONTNEED, low, high - low)

    def _bounds(self, view: np.ndarray) -> tuple[int, int]:
        """The first byte of the file that `view` spans, and the end."""
        low, high = (bound - byte_bounds(self._bytes)[0] for bound in byte_bounds(view))
        return low, high
