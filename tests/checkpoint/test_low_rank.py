"""Changes of low rank: every region is what numpy makes of the whole, and is the same bits however it is cut."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4export.checkpoint.low_rank import DoraWeight, LoraWeight, LowRank
from l4export.checkpoint.stored_weight import ComputedWeight

RANDOM = np.random.default_rng(0)


class _Array(ComputedWeight):
    """An array as a stored weight."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__("w", values.shape, values.dtype, [])
        self.values = values

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        return self.values[region]


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, np.float32)


MATRIX, A, B, MAGNITUDE = normal(300, 141).astype(ml_dtypes.bfloat16), normal(5, 141), normal(300, 5), normal(300)
LORA = LoraWeight(_Array(MATRIX), LowRank(_Array(A), _Array(B), 0.7))
DORA = DoraWeight(LORA, _Array(MAGNITUDE))
STACK, STACK_A, STACK_B = normal(3, 140, 261), normal(3 * 4, 261), normal(140, 4 * 3)
EXPERTS = LoraWeight(_Array(STACK), LowRank(_Array(STACK_A), _Array(STACK_B), 0.7, experts=3))
TURNED_A, TURNED_B = normal(3 * 4, 140), normal(261, 4 * 3)
TURNED = LoraWeight(_Array(STACK), LowRank(_Array(TURNED_A), _Array(TURNED_B), 0.7, experts=3, transposed=True))


def test_as_documented() -> None:
    """Against float64; a sum of five products in float32 is right to 1e-6 of the largest value."""
    merged = MATRIX.astype(np.float64) + 0.7 * B.astype(np.float64) @ A
    norms = np.linalg.norm(merged, axis=1, keepdims=True)
    experts, turned = STACK.astype(np.float64), STACK.astype(np.float64)
    for e in range(3):
        experts[e] += 0.7 * STACK_B[:, e::3].astype(np.float64) @ STACK_A[4 * e : 4 * e + 4]
        turned[e] += 0.7 * (TURNED_B[:, e::3].astype(np.float64) @ TURNED_A[4 * e : 4 * e + 4]).T
    cases = {
        LORA: merged,
        DORA: MAGNITUDE[:, None] * merged / norms,
        EXPERTS: experts,
        TURNED: turned,
    }
    for weight, expected in cases.items():
        got = weight.read()
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() < 1e-6 * np.abs(expected).max()


@given(st.data())
def test_the_same_bits_in_any_region(data: st.DataObject) -> None:
    weight = data.draw(st.sampled_from([LORA, DORA, EXPERTS, TURNED]))
    index = tuple(data.draw(st.slices(size)) for size in weight.shape)
    np.testing.assert_array_equal(weight.read(index), weight.read()[index])
    rows = slice(data.draw(st.integers(0, 70)), data.draw(st.integers(71, 140)))
    outer = (1,) if len(weight.shape) == 3 else ()
    pieces = [piece for _, piece in weight.rows((*outer, rows, slice(3, 140)), 1)]
    np.testing.assert_array_equal(np.concatenate(pieces), weight.read()[(*outer, rows, slice(3, 140))])


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32_are_not_finite_and_nothing_is_said() -> None:
    """Found by fuzzing: whoever reads a weight that is not finite refuses it, in one line."""
    huge = LoraWeight(_Array(MATRIX), LowRank(_Array(A), _Array(B * np.float32(3e37)), 20.0))
    for weight in (huge, DoraWeight(huge, _Array(MAGNITUDE))):
        assert not np.isfinite(weight.read()).all()
