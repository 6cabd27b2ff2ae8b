"""One tensor of a checkpoint, read piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from l4export.checkpoint.stored_weight import Index
from l4export.errors import InputError
from l4export.storage.mapped_tensors import ARRAY_DTYPES, HANDLED_DTYPES, MappedTensors, TensorEntry
from l4export.storage.opened_file import OpenedFile
from l4export.storage.safetensors import DTYPE_BITS

__all__ = ["SourceTensor"]

_PIECE = 32 * 2**20  # bytes of mapped source that one read may make resident at a time


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a checkpoint: its description now, its values when `read` asks for them.

    As a weight of the inventory (`StoredWeight`) it is its own only part.
    """

    entry: TensorEntry
    file: MappedTensors = field(repr=False, compare=False)

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
                f"{self.file.path}: tensor {self.name!r} has dtype {self.entry.dtype}; only {known} are supported, "
                "so use the float checkpoint"
            )
        return HANDLED_DTYPES[self.entry.dtype]

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Any of `ARRAY_DTYPES`, those of codes and scales too; raises `InputError` for others."""
        if self.entry.dtype not in ARRAY_DTYPES:
            known = ", ".join(ARRAY_DTYPES)
            raise InputError(f"{self.file.path}: tensor {self.name!r} has dtype {self.entry.dtype}, not one of {known}")
        return ARRAY_DTYPES[self.entry.dtype]

    @property
    def parts(self) -> tuple[SourceTensor, ...]:
        """Itself."""
        return (self,)

    @property
    def formats(self) -> tuple[str, ...]:
        """Its dtype, as safetensors spells it."""
        return (self.entry.dtype,)

    @property
    def nbytes(self) -> int:
        """The stored size in bytes."""
        return math.prod(self.shape) * DTYPE_BITS[self.entry.dtype] // 8

    @property
    def place(self) -> tuple[OpenedFile, int, int]:
        """The file that holds the tensor, its first byte there, and the end."""
        return self.file.opened, self.entry.start, self.entry.stop

    @property
    def file_name(self) -> str:
        """The name of the file, in the checkpoint's directory, that holds the tensor."""
        return self.file.path.name

    def read(self, index: Index = ()) -> np.ndarray:
        """A C-contiguous copy of `tensor[index]`, where `index` is a tuple of integers and slices as in numpy.

        Elements have the `stored_dtype`.

        Beyond the copy, at most 32 MiB of mapped pages are resident at a time. Raises `InputError` if the file shrank,
        `IndexError` or `TypeError` for an index that numpy's basic indexing would not take.
        """
        if len(index) > len(self.shape):
            raise IndexError(f"{len(index)} indices for a tensor of {len(self.shape)} dimensions")
        if not all(isinstance(i, int | slice) for i in index):
            raise TypeError("an index is a tuple of integers and slices")
        # Bits instead of floats: copies between strided bfloat16 arrays are slow.
        dtype = self.stored_dtype
        bits = self.file.array(self.entry).view(f"u{dtype.itemsize}")
        full = index + (slice(None),) * (len(self.shape) - len(index))
        shape = [len(range(*i.indices(size))) for i, size in zip(full, self.shape, strict=True) if isinstance(i, slice)]
        self.file.announce(bits[(..., *full)])  # with the dots even a single element is a view
        out = np.empty(shape, bits.dtype)
        self._copy(bits, full, out)
        return out.view(dtype)

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
            self.file.announce(piece[:, columns])
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
