"""Weights that are seen in another way give every region as numpy gives it of the whole."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from whole_array import WholeArray

from l4export.checkpoint.stored_weight import StoredWeight
from l4export.checkpoint.weight_views import Joined, Rows, Stacked, Transposed

MATRIX = np.arange(12 * 5).reshape(12, 5).astype(ml_dtypes.bfloat16)
STACKS = [np.arange(3 * size * 4, dtype=np.float32).reshape(3, size, 4) for size in (2, 1, 4)]
HALF = np.ones((3, 2, 4), np.float16)

VIEWS: dict[str, tuple[Callable[[], StoredWeight], np.ndarray]] = {
    "rows": (lambda: Rows(WholeArray(MATRIX), 3, 10), MATRIX[3:10]),
    "transposed": (lambda: Transposed(WholeArray(MATRIX)), MATRIX.T),
    "stacked": (lambda: Stacked(WholeArray(MATRIX), 3), MATRIX.reshape(3, 4, 5)),
    "joined": (lambda: Joined("j", [WholeArray(stack) for stack in STACKS], 1), np.concatenate(STACKS, axis=1)),
    "joined from behind": (
        lambda: Joined("j", [WholeArray(STACKS[0]), WholeArray(HALF)], 2),
        np.concatenate([STACKS[0], HALF.astype(np.float32)], axis=2),
    ),
}


@pytest.mark.parametrize("name", VIEWS)
@given(data=st.data())
def test_any_region(name: str, data: st.DataObject) -> None:
    make, whole = VIEWS[name]
    weight = make()
    assert (weight.shape, weight.dtype) == (whole.shape, whole.dtype)
    index = tuple(data.draw(st.slices(size) | st.integers(-size, size - 1)) for size in whole.shape)
    np.testing.assert_array_equal(weight.read(index), whole[index])
    outer = tuple(data.draw(st.integers(0, size - 1)) for size in whole.shape[:-2])
    pieces = list(weight.rows((*outer, slice(1, 2), slice(0, 3)), 1))
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in pieces]), whole[outer][1:2, 0:3])
