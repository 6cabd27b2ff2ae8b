"""Routed experts that are not stored as transformers stores them: as a matrix each, or stacked.

The inventory has two tensors a layer, [experts, in, out]: `experts.gate_up_proj`, whose columns are the gates and then
the ups, and `experts.down_proj`. Found instead are linear layers, [out, in], of every expert

    experts.{e}.gate_proj.weight, experts.{e}.up_proj.weight, experts.{e}.down_proj.weight

as programs write them that quantise linear layers, or the same stacked, [experts, out, in], as MLX does

    experts.gate_proj.weight, experts.up_proj.weight, experts.down_proj.weight

or either with gates and ups in one, `gate_up_proj.weight`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from l4export.checkpoint.matrix_codes import MatrixCodes, stack_matrices
from l4export.checkpoint.stored_weight import ComputedWeight, Find, StoredWeight, TurnedMatrix
from l4export.checkpoint.transpose import transpose

__all__ = ["EXPERT_LINEARS", "ExpertOfStack", "JoinedExperts", "LinearOfExpert", "expert_linears", "join_experts"]

EXPERT_LINEARS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""A tensor of the inventory -> the linear layers that are side by side in it."""


def join_experts(name: str, shape: tuple[int, ...], find: Find) -> StoredWeight | None:
    """The experts `name`, [experts, in, out], made of linear layers; None where not all of these are there.

    Raises:
        InputError: a linear layer of another shape.
    """
    module, _, tensor = name.rpartition(".")
    if not module.endswith(".experts") or tensor not in EXPERT_LINEARS:
        return None
    for names in (EXPERT_LINEARS[tensor], (tensor,)):
        linear = (shape[0], shape[2] // len(names), shape[1])
        found = [matrices for each in names if (matrices := _matrices(module, each, linear, find))]
        if len(found) == len(names):
            return JoinedExperts(name, shape, found)
    return None


def _matrices(module: str, linear: str, shape: tuple[int, ...], find: Find) -> list[StoredWeight]:
    """The matrix [out, in] of every expert, cut from a stack or stored by itself; none where one is missing."""
    experts = range(shape[0])
    if stack := find(f"{module}.{linear}.weight", shape):
        return [ExpertOfStack(stack, expert) for expert in experts]
    found = [find(f"{module}.{expert}.{linear}.weight", shape[1:]) for expert in experts]
    there = [matrix for matrix in found if matrix]
    return there if len(there) == len(found) else []


def expert_linears(weight: StoredWeight, linears: Sequence[str]) -> dict[str, list[StoredWeight]]:
    """The opposite of `join_experts`: of a weight [experts, in, out], the matrix [out, in] of every expert in each of
    the linear layers that are side by side in it, by their names."""
    if isinstance(weight, JoinedExperts) and len(weight.linears) == len(linears):
        return {name: list(matrices) for name, matrices in zip(linears, weight.linears, strict=True)}
    width = weight.shape[2] // len(linears)
    return {
        name: [LinearOfExpert(weight, expert, place * width, width) for expert in range(weight.shape[0])]
        for place, name in enumerate(linears)
    }


class LinearOfExpert(ComputedWeight):
    """One matrix [out, in] of a weight [experts, in, out]: some of an expert's columns, transposed."""

    def __init__(self, weight: StoredWeight, expert: int, start: int, width: int) -> None:
        super().__init__(f"{weight.name}[{expert}]", (width, weight.shape[1]), weight.dtype, weight.parts)
        self._weight, self._expert, self._start = weight, expert, start

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """The columns that are the region's rows, transposed."""
        rows, columns = region
        return self._weight.read((self._expert, columns, slice(self._start + rows.start, self._start + rows.stop))).T


class ExpertOfStack(ComputedWeight):
    """One matrix [out, in] of a stack [experts, out, in]."""

    def __init__(self, stack: StoredWeight, expert: int) -> None:
        super().__init__(f"{stack.name}[{expert}]", stack.shape[1:], stack.dtype, stack.parts, stack.formats)
        self._stack, self._expert = stack, expert

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """The region of the stack's matrix."""
        return self._stack.read((self._expert, *region))


class JoinedExperts(ComputedWeight):
    """The inventory's tensor [experts, in, out] of matrices [out, in]: `linears[j][e]`, side by side along `out`."""

    def __init__(self, name: str, shape: tuple[int, ...], linears: Sequence[Sequence[StoredWeight]]) -> None:
        matrices = [matrix for experts in linears for matrix in experts]
        dtype = functools.reduce(np.promote_types, {matrix.dtype for matrix in matrices})
        parts = {id(part): part for matrix in matrices for part in matrix.parts}
        formats = [each for matrix in matrices for each in matrix.formats]
        super().__init__(name, shape, dtype, list(parts.values()), formats)
        self.linears = linears

    @functools.cached_property
    def coded(self) -> MatrixCodes | None:
        """The matrices' codes, if all have codes of one format."""
        return stack_matrices(self.name, self.linears)

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """Each matrix's share, transposed."""
        experts, rows, columns = region
        out = np.empty([cut.stop - cut.start for cut in region], self.dtype)
        start = 0
        for matrices in self.linears:
            width = matrices[0].shape[0]
            low, high = max(columns.start, start), min(columns.stop, start + width)
            if low < high:
                mine = slice(low - columns.start, high - columns.start)
                for expert in range(experts.start, experts.stop):
                    matrix, into = matrices[expert], out[expert - experts.start, :, mine]
                    if isinstance(matrix, TurnedMatrix) and self.dtype == np.float32:
                        matrix.read_turned(slice(low - start, high - start), rows, into)
                        continue
                    values = matrix.read((slice(low - start, high - start), rows))
                    transpose(values.astype(self.dtype, copy=False), into)
            start += width
        return out
