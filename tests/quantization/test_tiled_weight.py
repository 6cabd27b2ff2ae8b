"""Quantised weights in the tiles of the CPU kernels: some tiles by themselves, and all of them as the layout says."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4export.engine.cpu_weight_layout import CpuFormat, gate_up_order, pack_tiles
from l4export.quantization.schemes import Scheme
from l4export.quantization.tiled_weight import (
    TiledWeight,
    gate_up_rows,
    in_turn_rows,
    paired_zero_points,
    single_zero_points,
)
from l4export.quantization.weights import CodedWeight, QuantizedWeight
from l4export.weights.evaluation import InTurn, Stack
from l4export.weights.recipes import Interleave, Slice, whole
from tiny_graphs import source


@st.composite
def weights(draw: st.DrawFn) -> tuple[QuantizedWeight, CpuFormat]:
    """A weight [N, K] or [E, N, K] of random codes, and the layout of its tiles."""
    kind, block = draw(st.sampled_from(["int4", "int8"])), draw(st.sampled_from([16, 32, 64, 128]))
    rows, blocks = draw(st.integers(1, 100)), draw(st.integers(1, 3))
    outer = draw(st.sampled_from([(), (3,)]))
    scheme = Scheme(kind, block, draw(st.booleans()), "float16")
    values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((*outer, rows, block * blocks))
    layout = CpuFormat(rows, block * blocks, scheme.bits, block, not scheme.symmetric)
    return QuantizedWeight(source(values.astype(np.float32)), scheme), layout


def packed(coded: CodedWeight | InTurn, layout: CpuFormat, order: np.ndarray | None = None) -> np.ndarray:
    """By the definition: everything is evaluated, the rows are put in order, and all is packed at once."""
    codes, scales, *zeros = coded.evaluate(whole(coded.lead))
    zeros = [single_zero_points(each, layout) for each in zeros]
    arrays = [np.ascontiguousarray(each if order is None else each[..., order, :]) for each in (codes, scales, *zeros)]
    return pack_tiles(layout, *arrays)


@settings(deadline=None)  # Numba compiles a kernel when it is first called
@given(weights(), st.data())
def test_any_tiles_are_those_of_the_whole(made: tuple[QuantizedWeight, CpuFormat], data: st.DataObject) -> None:
    coded, layout = made
    tiled, expected = TiledWeight(coded.codes, layout), packed(coded, layout)
    first = data.draw(st.integers(0, layout.tiles - 1))
    stop = data.draw(st.integers(first + 1, layout.tiles))
    region = (*(slice(1, 3) for _ in coded.lead[:-1]), slice(first, stop))
    assert tiled.tiles.dims == expected.shape and tiled.tiles.dtype == ir.DataType.UINT8
    np.testing.assert_array_equal(tiled.evaluate(region)[0], expected[region])
    np.testing.assert_array_equal(tiled.tiles.numpy(), expected)


@pytest.mark.parametrize("scheme", [Scheme("int4", 16, False, "float16"), Scheme("int8", 32, True, "float16")])
def test_gate_and_up_lie_by_halves_in_a_tile(scheme: Scheme) -> None:
    """The rows that `FuseExperts` lays in turn, [gate | up] in the checkpoint."""
    width, k = 48, 64
    stored = source(np.random.default_rng(0).standard_normal((3, 2 * width, k)).astype(np.float32))
    layout = CpuFormat(2 * width, k, scheme.bits, scheme.block_size, not scheme.symmetric)
    in_turn = Interleave([Slice(stored, 1, 0, width), Slice(stored, 1, width, 2 * width)], axis=1)
    tiled = TiledWeight(QuantizedWeight(in_turn, scheme).codes, layout, gated=True)
    expected = packed(QuantizedWeight(stored, scheme), layout, gate_up_order(width))
    np.testing.assert_array_equal(tiled.tiles.numpy(), expected)
    np.testing.assert_array_equal(tiled.evaluate((slice(1, 2), slice(1, 3)))[0], expected[1:2, 1:3])


@pytest.mark.parametrize("scheme", [Scheme("int4", 16, False, "float16"), Scheme("int8", 32, True, "float16")])
def test_two_weights_lie_in_turn_as_one_does(scheme: Scheme) -> None:
    """Gate and up of a shared expert are weights of their own."""
    width, k = 48, 64
    values = np.random.default_rng(0).standard_normal((2 * width, k)).astype(np.float32)
    gate, up = (QuantizedWeight(source(half), scheme) for half in (values[:width], values[width:]))
    layout = CpuFormat(2 * width, k, scheme.bits, scheme.block_size, not scheme.symmetric)
    tiled = TiledWeight(InTurn(gate.codes, up.codes).outputs[0], layout, gated=True)
    expected = packed(QuantizedWeight(source(values), scheme), layout, gate_up_order(width))
    np.testing.assert_array_equal(tiled.tiles.numpy(), expected)
    np.testing.assert_array_equal(tiled.evaluate((slice(2, 3),))[0], expected[2:3])


def test_whole_tiles_can_be_stacked() -> None:
    scheme, values = Scheme("int4", 32, scale_dtype="float16"), np.random.default_rng(0).standard_normal((96, 64))
    parts = [QuantizedWeight(source(part.astype(np.float32)), scheme) for part in (values[:64], values[64:])]
    stack = Stack([TiledWeight(part.codes, CpuFormat(part.lead[0], 64, 4, 32)).tiles for part in parts])
    expected = packed(QuantizedWeight(source(values.astype(np.float32)), scheme), CpuFormat(96, 64, 4, 32))
    np.testing.assert_array_equal(stack.output(0, expected.shape[1:]).numpy(), expected)


@given(st.integers(1, 4), st.integers(1, 5))
def test_the_order_of_rows_can_be_taken_back(tiles: int, columns: int) -> None:
    rows = np.arange(2 * tiles * 32 * columns).reshape(2, tiles * 32, columns)
    np.testing.assert_array_equal(in_turn_rows(gate_up_rows(rows)), rows)
    first = [*range(0, 32, 2), *range(1, 32, 2)]
    np.testing.assert_array_equal(gate_up_rows(rows)[0, :32, 0] // columns, first)


def test_zero_points_are_paired_as_schemes_say() -> None:
    np.testing.assert_array_equal(paired_zero_points(np.array([[1, 2, 3]], np.uint8)), [[0x21, 0x03]])
    np.testing.assert_array_equal(paired_zero_points(np.array([[1, 2]], np.uint8)), [[0x21]])
    layout, paired = CpuFormat(1, 96, 4, 32, zero_points=True), np.array([[0x21, 0x03]], np.uint8)
    np.testing.assert_array_equal(single_zero_points(paired, layout), [[1, 2, 3]])


@pytest.mark.parametrize(
    ("scheme", "layout", "word"),
    [
        (Scheme("int4", 32), CpuFormat(40, 64, 4, 32), "float16 scales"),
        (Scheme("int4", 32, False, "float16"), CpuFormat(40, 64, 4, 32), "zero points"),
        (Scheme("int4", 32, True, "float16"), CpuFormat(40, 64, 4, 32, True), "zero points"),
        (Scheme("int4", 32, True, "float16"), CpuFormat(48, 64, 4, 32), "not the codes of a weight of 48 rows"),
        (Scheme("fp8", 0), CpuFormat(40, 64, 8, 32), "codes"),
    ],
)
def test_what_does_not_fit_is_refused(scheme: Scheme, layout: CpuFormat, word: str) -> None:
    weight = QuantizedWeight(source(np.ones((40, 64), np.float32)), scheme)
    with pytest.raises(ValueError, match=word):
        TiledWeight(weight.codes, layout)


def test_weights_that_differ_are_not_laid_in_turn() -> None:
    values = source(np.ones((40, 64), np.float32))
    one, other = (QuantizedWeight(values, Scheme("int4", block, scale_dtype="float16")) for block in (32, 64))
    with pytest.raises(ValueError, match="rows must be alike"):
        InTurn(one.codes, other.codes)
