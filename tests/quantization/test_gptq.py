"""GPTQ is compared with its definition and with rounding to nearest, and gets inputs that could make it fail."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4export.quantization import Scheme
from l4export.quantization.gptq import QuantizedMatrix, gptq, inverse_factor
from l4export.quantization.gptq_kernel import choose_scales, descend, round_columns

SCHEMES = ["int4-b16", "int4-b32-asym", "int4-b32-f16", "int8-b16", "int8-b16-asym-f16", "int4-b32-bf16-pos",
           "int8-b16-pos"]  # fmt: skip


def problem(n: int, k: int, tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and moments of inputs that are strongly correlated and of very different sizes."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((k, k)) / np.sqrt(k) * np.exp(rng.standard_normal(k))[:, None]
    inputs = mixing @ rng.standard_normal((k, tokens))
    return rng.standard_normal((n, k)).astype(np.float32), 2 * inputs @ inputs.T


def output_error(weight: np.ndarray, values: np.ndarray, moments: np.ndarray) -> float:
    difference = weight.astype(np.float64) - values
    return float(((difference @ moments) * difference).sum())


def test_the_inverse_factor() -> None:
    _, moments = problem(1, 48, 100)
    order = np.random.default_rng(1).permutation(48)
    factor, damping = inverse_factor(moments, order, 0.01)
    damped = (moments + 0.01 * np.diagonal(moments).mean() * np.eye(48))[np.ix_(order, order)]
    assert damping == 0.01
    assert (np.tril(factor, -1) == 0).all()
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(48), atol=1e-4)  # float32 factors


def test_rounding_against_the_paper_written_down_plainly() -> None:
    """Column by column in float64: round, divide by U_ii, subtract from every later column."""
    weight, moments = problem(7, 64, 200)
    factor = inverse_factor(moments, np.arange(64), 0.01)[0]
    scales = QuantizedMatrix.rounded(weight, Scheme("int4", 16)).scales
    left = weight.astype(np.float64)
    expected = np.zeros(weight.shape, np.uint8)
    for i in range(64):
        scale = scales[:, i // 16].astype(np.float64)
        expected[:, i] = np.clip(np.rint(left[:, i] / scale) + 8, 0, 15)
        error = (left[:, i] - (expected[:, i] - 8.0) * scale) / factor[i, i]
        left[:, i:] -= np.outer(error, factor[i, i:])
    codes, errors, got = np.empty_like(expected), np.empty((7, 64), np.float32), weight.copy()
    zeros = np.full(scales.shape, 8, np.float32)
    for start in (0, 48):  # in two pieces, the second after the first one's errors have been carried over
        stop = 48 if start == 0 else 64
        groups = np.arange(64) // 16
        round_columns(got, factor, groups, scales, zeros, np.float32(15), codes, errors, start, stop)
        got[:, stop:] -= errors[:, : stop - start] @ factor[start:stop, stop:]
    assert (codes == expected).mean() > 0.99  # a value half way between two codes may go the other way in float32


def test_descent_only_goes_down_and_keeps_its_sums_up_to_date() -> None:
    weight, moments = problem(9, 64, 200)
    scheme = Scheme("int4", 16)
    plain = QuantizedMatrix.rounded(weight, scheme)
    narrow = moments.astype(np.float32)
    codes = np.stack([plain.codes & 15, plain.codes >> 4], axis=-1).reshape(9, 64)
    zeros = np.full(plain.scales.shape, 8, np.float32)
    errors = [output_error(weight, plain.values, moments)]
    away = weight - plain.values
    slope = away @ narrow
    for _ in range(3):
        descend(away, slope, narrow, 16, plain.scales, zeros, np.float32(15), codes)
        values = (codes - zeros.repeat(16, axis=1)) * plain.scales.repeat(16, axis=1)
        np.testing.assert_allclose(away, weight - values, atol=1e-5)
        np.testing.assert_allclose(slope, away @ narrow, atol=1e-3 * np.abs(weight @ narrow).max())
        errors.append(output_error(weight, values, moments))
    assert errors[1] < 0.9 * errors[0]
    assert errors[3] <= errors[2] <= errors[1]


def test_scales_are_the_best_of_those_tried() -> None:
    weight, moments = problem(5, 32, 100)
    plain = QuantizedMatrix.rounded(weight, Scheme("int4", 16)).scales
    factors, cost = np.float32([1, 0.9, 0.8]), np.diagonal(moments).astype(np.float32)
    scales, zeros = plain.copy(), np.full(plain.shape, 8, np.float32)
    choose_scales(weight, cost, 16, factors, scales, zeros, np.float32(15))
    tried = []
    for factor in factors:
        wide = (plain * factor).repeat(16, axis=1)
        away = weight - np.clip(np.rint(weight / wide), -8, 7) * wide
        tried.append((cost * away**2).reshape(5, 2, 16).sum(axis=2))
    np.testing.assert_array_equal(scales, plain * factors[np.argmin(tried, axis=0)])
    assert len(np.unique(scales / plain)) > 1


@pytest.mark.parametrize("name", SCHEMES)
def test_outputs_are_nearer_than_after_rounding_to_nearest(name: str) -> None:
    scheme = Scheme.named(name)
    weight, moments = problem(300, 96, 400)  # rows of more than one worker
    matrix, _ = gptq(weight, moments, scheme)
    plain = QuantizedMatrix.rounded(weight, scheme)
    assert output_error(weight, matrix.values, moments) < 0.6 * output_error(weight, plain.values, moments)
    assert not scheme.positive or (matrix.scales.astype(np.float32) > 0).all()
    for got, wanted in zip(matrix_parts(matrix), matrix_parts(plain), strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)  # drop-in for what rounding to nearest gives


def matrix_parts(matrix: QuantizedMatrix) -> list[np.ndarray]:
    parts = [matrix.codes, matrix.scales, matrix.zero_points]
    return [part for part in parts if part is not None]


def test_bytes_do_not_depend_on_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = problem(600, 64, 300)
    first, _ = gptq(weight, moments, Scheme("int4", 16))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(5))
    again, _ = gptq(weight, moments, Scheme("int4", 16))
    for a, b in zip(matrix_parts(first), matrix_parts(again), strict=True):
        np.testing.assert_array_equal(a, b)


class TestWhatCouldGoWrong:
    def test_moments_that_are_singular(self) -> None:
        """Fewer tokens than columns, and columns that are always 0."""
        weight, moments = problem(8, 64, 5)
        moments[:, 10:20] = moments[10:20] = 0
        matrix, damping = gptq(weight, moments, Scheme("int4", 16), damping=1e-30)
        assert damping > 1e-30
        assert np.isfinite(matrix.values).all()

    def test_no_tokens_at_all_is_rounding_to_nearest_with_better_scales(self) -> None:
        weight, _ = problem(8, 64, 5)
        matrix, _ = gptq(weight, np.zeros((64, 64)), Scheme("int4", 16))
        plain = QuantizedMatrix.rounded(weight, Scheme("int4", 16))
        assert np.square(weight - matrix.values).sum() < np.square(weight - plain.values).sum()

    @pytest.mark.parametrize("name", SCHEMES)
    def test_blocks_of_zeros(self, name: str) -> None:
        weight, moments = problem(8, 64, 100)
        weight[:, 32:] = 0
        weight[3] = 0
        matrix, _ = gptq(weight, moments, Scheme.named(name))
        assert (matrix.values[3] == 0).all()
        assert np.isfinite(matrix.values).all()

    @pytest.mark.parametrize("size", [1e-39, 1e-4, 1e30])
    def test_weights_of_any_size(self, size: float) -> None:
        weight, moments = problem(8, 64, 100)
        scheme = Scheme("int4", 16)
        matrix, _ = gptq(weight * np.float32(size), moments, scheme)
        assert np.isfinite(matrix.values).all()
        if size > 1e-30:
            same, _ = gptq(weight, moments, scheme)
            assert np.abs(matrix.values / np.float32(size) - same.values).max() < 2  # a step, where rounding is tied

    def test_weights_too_large_for_float16_scales(self) -> None:
        weight, moments = problem(8, 64, 100)
        with pytest.raises(ValueError, match="too large for float16"):
            gptq(weight * np.float32(1e6), moments, Scheme("int4", 16, scale_dtype="float16"))

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**31), tokens=st.integers(1, 200), name=st.sampled_from(SCHEMES))
    def test_never_worse_than_rounding_to_nearest(self, seed: int, tokens: int, name: str) -> None:
        weight, moments = problem(4, 64, tokens, seed)
        matrix, damping = gptq(weight, moments, Scheme.named(name))
        damped = moments + damping * np.diagonal(moments).mean() * np.eye(64)
        plain = QuantizedMatrix.rounded(weight, Scheme.named(name))
        assert output_error(weight, matrix.values, damped) <= output_error(weight, plain.values, damped)
