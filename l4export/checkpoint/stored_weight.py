"""A weight of the model as a checkpoint has it, in whatever form: one tensor, or something computed from several.

What a checkpoint stores and what the model's inventory (`l4export.model.tensors`) asks for are two things. A format
gives a `StoredWeight` for each weight of the inventory, in the inventory's shape; everything downstream reads that
piece by piece and does not know the format.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from l4export.storage.opened_file import OpenedFile

__all__ = ["ComputedWeight", "Find", "Index", "Part", "StoredWeight", "TurnedMatrix"]

_PIECE = 32 * 2**20  # bytes that are computed at a time

Index = tuple[int | slice, ...]


class Part(Protocol):
    """A tensor of the checkpoint (see `l4export.checkpoint.SourceTensor`)."""

    @property
    def name(self) -> str:
        """As the checkpoint calls it."""

    @property
    def file_name(self) -> str:
        """The name of the file that holds it, in the checkpoint's directory."""

    @property
    def place(self) -> tuple[OpenedFile, int, int]:
        """That file, the tensor's first byte there, and the end."""


@runtime_checkable
class StoredWeight(Protocol):
    """A weight of the inventory: `l4export.weights.recipes.SourceData`, and what of the checkpoint it is made of."""

    @property
    def name(self) -> str:
        """The inventory's name, with the checkpoint's prefix."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The inventory's shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, float16 or `ml_dtypes.bfloat16`."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tensors of the checkpoint that it is made of."""

    @property
    def formats(self) -> tuple[str, ...]:
        """How it is stored: a dtype as safetensors spells it, or a scheme of quantisation; several of a mixture."""

    @property
    def place(self) -> tuple[OpenedFile, int, int] | None:
        """The file that holds (most of) it, its first byte there, and the end; None: no file does."""

    def read(self, index: Index = (), /) -> np.ndarray:
        """A C-contiguous array of `weight[index]`, where `index` is a tuple of integers and slices as in numpy."""

    def rows(self, index: Index, multiple: int = 1, /) -> Iterator[tuple[int, np.ndarray]]:
        """The matrix `weight[index]` in pieces of its rows, each with its first row; see `SourceTensor.rows`."""


@runtime_checkable
class TurnedMatrix(Protocol):
    """A matrix that is read transposed at less cost than it is transposed: codes are smaller than numbers."""

    def read_turned(self, rows: slice, columns: slice, out: np.ndarray) -> None:
        """Write a region of the matrix to `out` [columns, rows], float32."""


Find = Callable[[str, tuple[int, ...]], StoredWeight | None]
"""Finds what is stored under the name of a weight, which must have that shape (`InputError`); None: nothing is."""


class ComputedWeight(abc.ABC):
    """A stored weight that is computed, region by region, from tensors of the checkpoint.

    Attributes:
        name: As `StoredWeight`.
        shape: As `StoredWeight`.
        dtype: As `StoredWeight`.
        parts: As `StoredWeight`.
        formats: As `StoredWeight`.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        parts: Sequence[Part],
        formats: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.shape = tuple(shape)
        self.dtype = dtype
        self.parts = tuple(parts)
        self.formats = tuple(dict.fromkeys(formats))

    @abc.abstractmethod
    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """The elements of a region, one slice in bounds and of step 1 for each axis, in `dtype`."""

    @property
    def place(self) -> tuple[OpenedFile, int, int] | None:
        """Of the parts, those in the first one's file."""
        if not self.parts:
            return None
        file = self.parts[0].place[0]
        places = [part.place for part in self.parts if part.place[0] is file]
        return file, min(start for _, start, _ in places), max(stop for _, _, stop in places)

    def read(self, index: Index = ()) -> np.ndarray:
        """As `StoredWeight`. Raises `IndexError` or `TypeError` for an index that numpy would not take."""
        if len(index) > len(self.shape):
            raise IndexError(f"{len(index)} indices for a weight of {len(self.shape)} dimensions")
        region: list[slice] = []
        taken: list[int | slice] = []
        full = (*index, *[slice(None)] * (len(self.shape) - len(index)))
        for at, size in zip(full, self.shape, strict=True):
            if isinstance(at, slice):
                cut = range(size)[at]
                low, high = (min(cut, default=0), max(cut, default=-1) + 1)
                region.append(slice(low, high))
                taken.append(slice(None, None, cut.step))
            else:
                position = range(size)[at]
                region.append(slice(position, position + 1))
                taken.append(0)
        return np.asarray(self.compute(tuple(region))[tuple(taken)], order="C")

    def rows(self, index: Index, multiple: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """As `StoredWeight`: pieces of about 32 MiB."""
        outer = tuple(slice(at, at + 1) if isinstance(at, int) else at for at in index[:-2])
        rows, columns = index[-2:]
        assert isinstance(rows, slice) and isinstance(columns, slice)
        row_bytes = (columns.stop - columns.start) * self.dtype.itemsize
        batch = max(1, _PIECE // max(1, row_bytes * multiple)) * multiple
        for start in range(rows.start, rows.stop, batch):
            piece = self.compute((*outer, slice(start, min(start + batch, rows.stop)), columns))
            yield start - rows.start, np.ascontiguousarray(piece.reshape(piece.shape[-2:]))
