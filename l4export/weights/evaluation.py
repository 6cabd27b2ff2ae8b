"""Evaluations: recipes that are computed together, because they are results of the same work.

The codes and the scales of a quantised weight are tensors of their own, made in one pass over the source. So it is
evaluations, not recipes, that emission evaluates.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from l4export.weights.recipes import Constant, Recipe, Region

__all__ = ["Evaluation", "InTurn", "Output", "Stack", "evaluation_of", "is_constant", "leaves", "side_bytes"]


class Evaluation(abc.ABC):
    """Tensors that are computed together, such as the codes and the scales of a quantised weight.

    `outputs` share their leading axes, `lead`: evaluating a region of `lead` gives each output's part of it, the
    output's other axes whole. Emission cuts the last axis of `lead` only at multiples of `row_multiple`.

    A plain recipe is the evaluation of itself alone (`evaluation_of`).
    """

    def __init__(self, lead: Sequence[int], row_multiple: int = 1) -> None:
        self.lead = tuple(lead)
        self.row_multiple = row_multiple
        self.outputs: tuple[Recipe, ...] = ()

    @abc.abstractmethod
    def evaluate(self, region: Region) -> tuple[np.ndarray, ...]:
        """The outputs' parts of a region of `lead`, in the order of `outputs`, each C-contiguous."""


class Output(Recipe):
    """One of the tensors of an evaluation. Its axes after the leading ones may divide the same bytes differently.

    INT4 and INT8 tensors are evaluated to bytes, of INT4 the element with the even index in the lower half, and read as
    elements.
    """

    def __init__(self, evaluation: Evaluation, index: int, dtype: ir.DataType, dims: Sequence[int]) -> None:
        super().__init__(dtype, dims)
        self.evaluation, self.index = evaluation, index

    def read(self, region: Region) -> np.ndarray:
        """Evaluates the leading axes' region and cuts the others."""
        count = len(self.evaluation.lead)
        part = self.evaluation.evaluate(region[:count])[self.index]
        if self.dtype in {ir.DataType.INT4, ir.DataType.INT8}:
            part = _signed(part, self.dtype)
        rows = [cut.stop - cut.start for cut in region[:count]]
        every: Region = (slice(None),) * count
        return part.reshape(*rows, *self.dims[count:])[every + region[count:]]


class Stack(Evaluation):
    """Evaluations one below the other: the outputs of each are joined along the first axis, in order.

    Each part is named by any of its outputs; all have as many outputs, alike but for their first axis.

    Raises:
        ValueError: parts that differ in more, or whose rows belong together (`row_multiple`).
    """

    def __init__(self, parts: Sequence[Recipe]) -> None:
        self.parts = tuple(parts)
        alike = {tuple((out.dtype, out.dims[1:]) for out in part.outputs) for part in self._evaluations()}
        if len(alike) > 1 or any(part.row_multiple > 1 for part in self._evaluations()):
            raise ValueError(f"cannot stack {list(parts)}: rows must be alike and stand alone")
        first = next(self._evaluations())
        super().__init__((sum(part.lead[0] for part in self._evaluations()), *first.lead[1:]))
        self.outputs = tuple(self.output(i, out.dims[1:]) for i, out in enumerate(first.outputs))

    def output(self, index: int, row: Sequence[int]) -> Output:
        """Output `index`, seen as rows of shape `row`."""
        return Output(self, index, next(self._evaluations()).outputs[index].dtype, (self.lead[0], *row))

    def evaluate(self, region: Region) -> tuple[np.ndarray, ...]:
        """What each part has of the region."""
        pieces, start = [], 0
        for part in self._evaluations():
            first, last = (min(max(at - start, 0), part.lead[0]) for at in (region[0].start, region[0].stop))
            if first < last:
                pieces.append(part.evaluate((slice(first, last), *region[1:])))
            start += part.lead[0]
        return tuple(map(np.concatenate, zip(*pieces, strict=True)))

    def _evaluations(self) -> Iterator[Evaluation]:
        return map(evaluation_of, self.parts)


class InTurn(Evaluation):
    """Two evaluations [n, ..] as one [2 n, ..] whose even rows are the first's and whose odd rows are the second's.

    Each part is named by any of its outputs; both have the same outputs.

    Raises:
        ValueError: parts that differ, or whose rows belong together (`row_multiple`).
    """

    def __init__(self, first: Recipe, second: Recipe) -> None:
        self.parts = (first, second)
        one, other = map(evaluation_of, self.parts)
        alike = [[(out.dtype, out.dims) for out in part.outputs] for part in (one, other)]
        if alike[0] != alike[1] or len(one.lead) != 1 or one.row_multiple * other.row_multiple > 1:
            raise ValueError(f"cannot lay {first} and {second} in turn: rows must be alike and stand alone")
        super().__init__((2 * one.lead[0],), row_multiple=2)
        self.outputs = tuple(
            Output(self, i, out.dtype, (2 * out.dims[0], *out.dims[1:])) for i, out in enumerate(one.outputs)
        )

    def evaluate(self, region: Region) -> tuple[np.ndarray, ...]:
        """Rows from an even one to before an even one."""
        rows = slice(region[0].start // 2, region[0].stop // 2)
        both = zip(*(evaluation_of(part).evaluate((rows,)) for part in self.parts), strict=True)
        return tuple(np.stack(pair, axis=1).reshape(-1, *pair[0].shape[1:]) for pair in both)


def is_constant(recipe: Recipe) -> bool:
    """Whether a recipe is made of arrays in memory alone, such as tables of rotations, and reads no file."""
    return all(isinstance(leaf, Constant) for leaf in leaves(recipe))


def leaves(expression: object) -> Iterator[Recipe]:
    """The recipes at the bottom of a recipe or of an evaluation of others, found among its attributes: tensors of a
    checkpoint, arrays in memory."""
    if isinstance(expression, list | tuple):
        for part in expression:
            yield from leaves(part)
    elif isinstance(expression, Recipe | Evaluation):
        inner = [leaf for name, held in vars(expression).items() if name != "outputs" for leaf in leaves(held)]
        yield from inner or ([expression] if isinstance(expression, Recipe) else [])


class _Alone(Evaluation):
    """A plain recipe as an evaluation: all its axes lead."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe.dims)
        self.outputs = (recipe,)

    def evaluate(self, region: Region) -> tuple[np.ndarray, ...]:
        """The recipe's region."""
        return (np.ascontiguousarray(self.outputs[0].read(region)),)


def evaluation_of(recipe: Recipe) -> Evaluation:
    """The evaluation that `recipe` is an output of: outputs of one evaluation share the same object."""
    return recipe.evaluation if isinstance(recipe, Output) else _Alone(recipe)


def _signed(packed: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """Bytes of two's complement numbers -> int8, or ml_dtypes.int4 and then twice as many along the last axis."""
    if dtype == ir.DataType.INT8:
        return packed.view(np.int8)
    pairs = np.stack([packed << 4, packed], axis=-1).view(np.int8) >> 4
    return pairs.reshape(*packed.shape[:-1], -1).astype(ml_dtypes.int4)


def side_bytes(evaluation: Evaluation) -> int:
    """The larger side of a whole evaluation: the bytes that it reads, or that it gives."""
    return max(_source_bytes(evaluation), sum(output.nbytes for output in evaluation.outputs), 1)


def _source_bytes(expression: Recipe | Evaluation) -> int:
    """Bytes of the checkpoint, or of arrays in memory, that an expression is made of.

    Follows the recipes among its attributes; of a part that is larger than the expression it counts only the share.
    """
    if isinstance(expression, Output):
        return _source_bytes(expression.evaluation)
    inner = [recipe for name, held in vars(expression).items() if name != "outputs" for recipe in _recipes(held)]
    if isinstance(expression, Evaluation):
        alone = not isinstance(expression.outputs[0], Output)
        return sum(map(_source_bytes, expression.outputs if alone else inner))
    if not inner:
        return expression.nbytes
    share = min(1.0, expression.size / max(1, sum(recipe.size for recipe in inner)))
    return math.ceil(share * sum(map(_source_bytes, inner)))


def _recipes(held: object) -> list[Recipe]:
    return [recipe for recipe in (held if isinstance(held, list | tuple) else [held]) if isinstance(recipe, Recipe)]
