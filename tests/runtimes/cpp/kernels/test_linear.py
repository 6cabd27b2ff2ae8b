"""Linear products of libl4cpu, in every instruction set of this machine: the bits of the NumPy definition."""

from __future__ import annotations

import itertools

import cpu_kernel_definition as definition
import numpy as np
import pytest
from cpu_kernel_library import Tiles, aligned, assert_same_bits, instruction_sets, linear, random_matrix
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

F32 = np.float32
ROWS = (1, 2, 3, 4, 5, 8, 9, 16, 31, 33, 100)

activations = pytest.mark.parametrize("int8", [True, False], ids=["int8", "float"])


def rows(rng: np.random.Generator, count: int, columns: int) -> np.ndarray:
    """Activations of which some blocks are much larger than others."""
    return (rng.standard_normal((count, columns)) * np.exp2(rng.integers(-9, 9, (count, 1)))).astype(F32)


@activations
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n", "k", "block"), [(64, 96, 32), (33, 64, 16), (7, 192, 64), (50, 384, 128)])
def test_bits_of_the_definition(isa: str, n: int, k: int, block: int, bits: int, zero_points: bool, int8: bool) -> None:
    rng = np.random.default_rng(n + bits)
    matrix, x = random_matrix(rng, n, k, bits, block, zero_points), rows(rng, max(ROWS), k)
    bias = rng.standard_normal(n).astype(F32)
    tiles, expected = Tiles(matrix, zero_points), definition.linear(x, matrix, int8)
    for count in ROWS:
        assert_same_bits(linear(isa, tiles, x[:count], int8), expected[:count])
    assert_same_bits(linear(isa, tiles, x, int8, bias), expected + bias)


@activations
def test_many_columns(isa: str, int8: bool) -> None:
    """More columns than a float's mantissa adds exactly, more tiles than a piece has."""
    rng = np.random.default_rng(0)
    matrix, x = random_matrix(rng, 300, 4096, 4, 128, False), rows(rng, 3, 4096)
    assert_same_bits(linear(isa, Tiles(matrix, False), x, int8), definition.linear(x, matrix, int8))


@activations
def test_tiles_may_lie_anywhere(isa: str, int8: bool) -> None:
    rng = np.random.default_rng(1)
    tiles, x = Tiles(random_matrix(rng, 40, 128, 4, 32, True), True), rows(rng, 5, 128)
    expected = linear(isa, tiles, x, int8)
    for offset in (1, 2, 32):
        tiles.array = aligned(tiles.array, offset)
        assert_same_bits(linear(isa, tiles, x, int8), expected)


def check_any_cut(data: st.DataObject) -> None:
    """Any shape, any values, any cut: a row's results depend on that row alone, and on no instruction set."""
    draw = data.draw
    bits, block = draw(st.sampled_from([4, 8])), draw(st.sampled_from([16, 32, 64, 128]))
    n, k, count = draw(st.integers(1, 100)), block * draw(st.integers(1, 5)), draw(st.integers(1, 40))
    zero_points, int8, any_bits = (draw(st.booleans()) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.integers(0, 2**32, (count, k), np.uint32).view(F32) if any_bits else rows(rng, count, k)
    tiles = Tiles(random_matrix(rng, n, k, bits, block, zero_points), zero_points)
    cuts = sorted({0, count, *draw(st.lists(st.integers(0, count), max_size=6))})
    whole = linear("scalar", tiles, x, int8)
    for isa in instruction_sets():
        parts = [linear(isa, tiles, x[a:b], int8) for a, b in itertools.pairwise(cuts)]
        assert_same_bits(np.concatenate(parts), whole)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_cut_of_the_rows_gives_the_same_bits(data: st.DataObject) -> None:
    check_any_cut(data)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_cut_of_many_more(data: st.DataObject) -> None:
    check_any_cut(data)


TINY = 2.0**-119
VALUES = {
    "zeros": [0.0, -0.0],
    "subnormal": [1e-45, -1e-40, 0.0],
    "around the smallest scale": [TINY, np.nextafter(F32(TINY), F32(0)), -TINY],
    "largest": [3.4028235e38, -3.4028235e38, 1.0],
    "halves": [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5],
    "infinite": [np.inf, 1.0],
    "both infinities": [np.inf, -np.inf],
    "NaN": [np.nan, 1.0],
}


@activations
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", VALUES)
def test_extreme_activations(isa: str, name: str, bits: int, int8: bool) -> None:
    rng = np.random.default_rng(2)
    matrix = random_matrix(rng, 32, 96, bits, 32, True)
    x = np.ones((4, 96), F32)
    x[1:3, 32:64] = rng.choice(np.asarray(VALUES[name], F32), (2, 32))
    y = linear(isa, Tiles(matrix, True), x, int8)
    assert_same_bits(y, definition.linear(x, matrix, int8))
    finite = np.isfinite(x).all()
    assert np.isfinite(y[[0, 3]]).all()
    if int8 and not finite:
        assert np.isnan(y[1:3]).all()


@activations
@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_scales_and_codes(isa: str, bits: int, int8: bool) -> None:
    """The largest sums that a block can have; scales of every kind that float16 has, subnormal ones too."""
    least, most = np.zeros((32, 256), np.uint8), np.full((32, 256), 2**bits - 1, np.uint8)
    odd = np.arange(32)[:, None] % 2 == 1
    scales = np.resize(np.asarray([65504, -65504, 6e-8, -6e-8, 6.1e-5, 0.0, -0.0, 1.0, 2.0], np.float16), (32, 2))
    matrix = definition.Matrix(np.where(odd, most, least), scales, np.where(odd, least, most)[:, :2], bits)
    x = np.asarray([[127], [-127], [1e30]], F32).repeat(256, axis=1)
    assert_same_bits(linear(isa, Tiles(matrix, True), x, int8), definition.linear(x, matrix, int8))


@activations
def test_the_definition_is_near_the_float64_product(int8: bool) -> None:
    """int8 by blocks of 32 is a relative error of some half a percent (rms); float32 sums one of some 1e-6."""
    rng = np.random.default_rng(3)
    matrix, x = random_matrix(rng, 64, 512, 4, 32, True), rng.standard_normal((8, 512)).astype(F32)
    weights = (matrix.less_zero() * matrix.scales.astype(np.float64)[..., None]).reshape(64, 512)
    exact = x.astype(np.float64) @ weights.T
    error = np.sqrt(np.mean((definition.linear(x, matrix, int8) - exact) ** 2) / np.mean(exact**2))
    assert error < (0.008 if int8 else 1e-6)
