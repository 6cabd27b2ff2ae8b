"""The weight plane: lazy expressions over checkpoint tensors.

A recipe is an `onnx_ir` tensor that knows its dtype and shape without reading a byte, so a graph can hold a 200 GB
model as kilobytes. It is evaluated region by region: `read(region)` asks only for the source elements that the region
needs, which is what lets emission stream. Passes rewrite recipes as they rewrite nodes, by wrapping them.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import onnx_ir as ir

from l4export.storage.opened_file import OpenedFile

__all__ = [
    "Cast",
    "Constant",
    "Interleave",
    "Recipe",
    "Region",
    "Slice",
    "Source",
    "Transpose",
    "as_recipe",
    "swapped",
    "whole",
]

Region = tuple[slice, ...]
"""One `slice(start, stop)` per axis, in bounds, step 1."""


class SourceData(Protocol):
    """What a recipe needs from a stored tensor (see `l4export.checkpoint.SourceTensor`)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype, `ml_dtypes` included."""

    @property
    def place(self) -> tuple[OpenedFile, int, int] | None:
        """The file that holds it, its first byte there, and the end; None: no file does."""

    def read(self, index: Region, /) -> np.ndarray:
        """The elements of one region, as a C-contiguous copy."""

    def rows(self, index: tuple[int | slice, ...], multiple: int = 1, /) -> Iterator[tuple[int, np.ndarray]]:
        """A matrix where it lies, in pieces of its rows, each with its first row, valid until the next is asked for."""


class Recipe(ir.LazyTensor):
    """A tensor that is computed when it is read. Subclasses implement `read`.

    `dims` (static) and `dtype` (an `ir.DataType`) are fixed at construction; `read(region)` returns an array of the
    region's shape. Access to the whole tensor (`numpy`, `tobytes`) exists so that small graphs can be run as they are.
    """

    def __init__(self, dtype: ir.DataType, dims: Sequence[int]) -> None:
        super().__init__(self._evaluate, dtype, ir.Shape(dims))
        self.dims = tuple(dims)

    @abc.abstractmethod
    def read(self, region: Region) -> np.ndarray:
        """The elements of `region` in the recipe's dtype; reads only what they need of the sources."""

    def rows(self, region: Region, multiple: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """A region as matrices of its last two axes: pieces of the rows, each with its first row.

        The axes before have length 1. Pieces are cut at multiples of `multiple` rows; their last axis is contiguous.
        A piece may lie in a mapped file: it is valid until the next is asked for.
        """
        values = self.read(region)
        yield 0, np.ascontiguousarray(values.reshape(values.shape[-2:]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name or 'unnamed'}: {self.dtype.name.lower()} {list(self.dims)})"

    def _evaluate(self) -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(self.read(whole(self.dims)), order="C"), dtype=self.dtype)


class Source(Recipe):
    """A checkpoint tensor as it is stored. No weight may be NaN or infinite: such a model computes nothing.

    `checked` False leaves the looking to the reader, for one that looks at every element anyway.
    """

    def __init__(self, data: SourceData, checked: bool = True) -> None:
        super().__init__(ir.DataType.from_numpy(data.dtype), data.shape)
        self.data, self.checked = data, checked

    def read(self, region: Region) -> np.ndarray:
        """Straight from the file.

        Raises:
            ValueError: an element is NaN or infinite; its position is named.
        """
        values = self.data.read(region)
        if self.checked and not _all_finite(values):
            bad = np.argwhere(~np.isfinite(values.astype(np.float32)))[0]
            position = [int(at) + cut.start for at, cut in zip(bad, region, strict=True)]
            raise ValueError(f"element {position} is {float(values[tuple(bad)])}, not a finite number")
        return values

    def rows(self, region: Region, multiple: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Copies nothing, unless elements must be looked at, or are not aligned in the file."""
        if self.checked:
            yield from super().rows(region, multiple)
            return
        for first, piece in self.data.rows((*(cut.start for cut in region[:-2]), *region[-2:]), multiple):
            yield first, np.require(piece, requirements="A")


class Constant(Recipe):
    """A tensor that is in memory already."""

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        super().__init__(tensor.dtype, tuple(tensor.shape.numpy()))
        self.tensor = tensor

    def read(self, region: Region) -> np.ndarray:
        """A view of the array."""
        return np.asarray(self.tensor.numpy()[region])


class Slice(Recipe):
    """`part[..., start:stop, ...]` along `axis`."""

    def __init__(self, part: Recipe, axis: int, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= part.dims[axis]:
            raise ValueError(f"slice {start}:{stop} outside axis {axis} of {part!r}")
        super().__init__(part.dtype, [stop - start if i == axis else n for i, n in enumerate(part.dims)])
        self.part, self.axis, self.cut = part, axis, slice(start, stop)

    def read(self, region: Region) -> np.ndarray:
        """The region, moved by `start`."""
        return self.part.read(self._moved(region))

    def rows(self, region: Region, multiple: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """The part's, from where it begins."""
        return self.part.rows(self._moved(region), multiple)

    def _moved(self, region: Region) -> Region:
        cut = region[self.axis]
        return _with(region, self.axis, slice(cut.start + self.cut.start, cut.stop + self.cut.start))


class Transpose(Recipe):
    """`numpy.transpose(part, perm)`: output axis i is input axis `perm[i]`."""

    def __init__(self, part: Recipe, perm: Sequence[int]) -> None:
        if sorted(perm) != list(range(len(part.dims))):
            raise ValueError(f"{list(perm)} does not permute the axes of {part!r}")
        super().__init__(part.dtype, [part.dims[p] for p in perm])
        self.part, self.perm = part, tuple(perm)

    def read(self, region: Region) -> np.ndarray:
        """The region of the input with its axes put back, transposed."""
        asked = [slice(0, 0)] * len(region)
        for axis, source_axis in enumerate(self.perm):
            asked[source_axis] = region[axis]
        return self.part.read(tuple(asked)).transpose(self.perm)


class Interleave(Recipe):
    """Tensors of one shape merged along `axis`: output index n*i + j is index i of part j, n parts."""

    def __init__(self, parts: Sequence[Recipe], axis: int) -> None:
        first = parts[0]
        if any(p.dims != first.dims or p.dtype != first.dtype for p in parts):
            raise ValueError(f"cannot interleave {list(parts)}: shapes and dtypes must be the same")
        super().__init__(first.dtype, [n * len(parts) if i == axis else n for i, n in enumerate(first.dims)])
        self.parts, self.axis = tuple(parts), axis

    def read(self, region: Region) -> np.ndarray:
        """Each part's share of the region, written with a stride."""
        n, cut = len(self.parts), region[self.axis]
        out = np.empty([s.stop - s.start for s in region], dtype=self.dtype.numpy())
        for j, part in enumerate(self.parts):
            start, stop = -((j - cut.start) // n), -((j - cut.stop) // n)
            target = slice(start * n + j - cut.start, None, n)
            out[_with(tuple(slice(None) for _ in region), self.axis, target)] = part.read(
                _with(region, self.axis, slice(start, stop))
            )
        return out


class Cast(Recipe):
    """Another element type, each element rounded to nearest even.

    Raises:
        ValueError: when a finite element does not fit (it would become infinite).
    """

    def __init__(self, part: Recipe, dtype: ir.DataType) -> None:
        super().__init__(dtype, part.dims)
        self.part = part

    def read(self, region: Region) -> np.ndarray:
        """The region in the new type."""
        values = self.part.read(region)
        if values.dtype == ml_dtypes.bfloat16 and self.dtype == ir.DataType.FLOAT:
            return _bfloat16_to_float32(values)
        with np.errstate(over="ignore"):
            out = values.astype(self.dtype.numpy(), order="C")
        if self.dtype.bitwidth < 32 and not np.isfinite(out).all():
            unfit = ~np.isfinite(out) & np.isfinite(values)
            if unfit.any():
                worst = float(np.abs(values[unfit].astype(np.float32)).max())
                raise ValueError(f"a weight of magnitude {worst:g} does not fit {self.dtype.name.lower()}")
        return out


def _all_finite(values: np.ndarray) -> bool:
    """Whether no element is NaN or infinite, in one quick pass.

    A half-precision number is finite if its bits without the sign are below infinity's; the sum of float32 numbers is
    finite unless one of them is not, or it overflows, and then each is looked at.
    """
    if values.dtype.itemsize == 2:
        infinity = 0x7C00 if values.dtype == np.float16 else 0x7F80
        bits = values.view(np.uint16)
        return not values.size or int((bits & 0x7FFF).max()) < infinity
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())


def _bfloat16_to_float32(values: np.ndarray) -> np.ndarray:
    """Exact: a bfloat16 is the upper half of a float32. Several times as fast as a generic cast, without the GIL."""
    wide = values.view(np.uint16).astype(np.uint32, order="C")
    np.left_shift(wide, 16, out=wide)
    return wide.view(np.float32)


def swapped(recipe: Recipe) -> Recipe:
    """`recipe` with its last two axes exchanged; where they are exchanged already, that is taken back."""
    axes = list(range(len(recipe.dims)))
    perm = (*axes[:-2], axes[-1], axes[-2])
    match recipe:
        case Cast():
            return Cast(swapped(recipe.part), recipe.dtype)
        case Transpose() if recipe.perm == perm:
            return recipe.part
    return Transpose(recipe, perm)


def as_recipe(tensor: ir.TensorProtocol) -> Recipe:
    """`tensor` as a recipe, wrapped if it is in memory."""
    return tensor if isinstance(tensor, Recipe) else Constant(tensor)


def whole(shape: Sequence[int]) -> Region:
    """The region that is everything."""
    return tuple(slice(0, n) for n in shape)


def _with(region: Region, axis: int, cut: slice) -> Region:
    return (*region[:axis], cut, *region[axis + 1 :])
