from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4export.quantization import Scheme
from l4export.quantization.weights import QuantizedWeight
from l4export.weights.evaluation import Evaluation, Output, Stack
from l4export.weights.recipes import (
    Cast,
    Constant,
    Interleave,
    Recipe,
    Region,
    Slice,
    Source,
    Transpose,
    as_recipe,
    swapped,
    whole,
)
from tiny_graphs import ArrayData, UnreadableData, source

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def numbered(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Every element different, and exact in every dtype of the tests (up to 256 elements)."""
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape).astype(dtype)


@st.composite
def compositions(draw: st.DrawFn) -> tuple[Recipe, np.ndarray]:
    """A recipe of random depth and, from the same choices, the array it must be."""
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    array = numbered(shape, draw(st.sampled_from(DTYPES)))
    recipe: Recipe = source(array)
    for step in draw(st.lists(st.sampled_from(["slice", "transpose", "interleave", "cast"]), max_size=5)):
        axis = draw(st.integers(0, array.ndim - 1))
        if step == "slice":
            stop = draw(st.integers(0, array.shape[axis]))
            start = draw(st.integers(0, stop))
            recipe = Slice(recipe, axis, start, stop)
            array = array[(slice(None),) * axis + (slice(start, stop),)]
        elif step == "transpose":
            perm = draw(st.permutations(range(array.ndim)))
            recipe, array = Transpose(recipe, perm), array.transpose(perm)
        elif step == "interleave" and array.size <= 128:
            parts = draw(st.integers(1, 3))
            reverse = np.flip(array, axis).copy()
            others = [(source(reverse), reverse), (recipe, array)][: parts - 1]
            recipe = Interleave([recipe, *(other for other, _ in others)], axis)
            array = np.stack([array, *(other for _, other in others)], axis + 1)
            array = array.reshape(*array.shape[:axis], array.shape[axis] * parts, *array.shape[axis + 2 :])
        elif step == "cast":
            dtype = draw(st.sampled_from(DTYPES))
            recipe, array = Cast(recipe, ir.DataType.from_numpy(np.dtype(dtype))), array.astype(dtype)
    return recipe, array


@st.composite
def regions(draw: st.DrawFn, shape: tuple[int, ...]) -> Region:
    cuts = []
    for size in shape:
        stop = draw(st.integers(0, size))
        cuts.append(slice(draw(st.integers(0, stop)), stop))
    return tuple(cuts)


@given(st.data())
def test_any_region_of_any_composition_is_what_numpy_gives(data: st.DataObject) -> None:
    recipe, array = data.draw(compositions())
    region = data.draw(regions(array.shape))
    read = recipe.read(region)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array[region], strict=True)


@given(compositions())
def test_dtype_and_shape_of_any_composition_are_those_of_numpy(pair: tuple[Recipe, np.ndarray]) -> None:
    recipe, array = pair
    assert (recipe.dims, recipe.dtype.numpy()) == (array.shape, array.dtype)
    assert tuple(recipe.shape) == array.shape and recipe.nbytes == array.nbytes


@given(compositions())
def test_the_whole_of_any_composition_is_what_numpy_gives(pair: tuple[Recipe, np.ndarray]) -> None:
    recipe, array = pair
    np.testing.assert_array_equal(recipe.numpy(), array, strict=True)
    assert recipe.tobytes() == array.tobytes()


@given(st.data())
def test_slice(data: st.DataObject) -> None:
    array = numbered((4, 5, 3))
    axis = data.draw(st.integers(0, 2))
    stop = data.draw(st.integers(0, array.shape[axis]))
    start = data.draw(st.integers(0, stop))
    expected = np.take(array, range(start, stop), axis)
    region = data.draw(regions(expected.shape))
    np.testing.assert_array_equal(Slice(source(array), axis, start, stop).read(region), expected[region], strict=True)


@given(st.permutations(range(3)), st.data())
def test_transpose(perm: list[int], data: st.DataObject) -> None:
    expected = np.transpose(array := numbered((4, 5, 3)), perm)
    region = data.draw(regions(expected.shape))
    np.testing.assert_array_equal(Transpose(source(array), perm).read(region), expected[region], strict=True)


@given(st.integers(0, 2), st.integers(1, 4), st.data())
def test_interleave(axis: int, count: int, data: st.DataObject) -> None:
    arrays = [numbered((3, 4, 2)) + 100 * j for j in range(count)]
    expected = np.empty([n * count if i == axis else n for i, n in enumerate((3, 4, 2))], np.float32)
    for j, array in enumerate(arrays):
        expected[(slice(None),) * axis + (slice(j, None, count),)] = array
    region = data.draw(regions(expected.shape))
    recipe = Interleave([source(array) for array in arrays], axis)
    np.testing.assert_array_equal(recipe.read(region), expected[region], strict=True)


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cast_rounds_as_numpy_does(dtype: type, to: type) -> None:
    array = np.random.default_rng(0).standard_normal((30, 7)).astype(dtype)
    cast = Cast(source(array), ir.DataType.from_numpy(np.dtype(to)))
    np.testing.assert_array_equal(cast.read(whole((30, 7))), array.astype(to), strict=True)


def test_cast_rounds_ties_to_even() -> None:
    halfway = np.asarray([1 + 2**-11, 1 + 3 * 2**-11], np.float32)  # between neighbours of float16
    cast = Cast(source(halfway), ir.DataType.FLOAT16).read(whole((2,)))
    assert cast.tolist() == [1.0, 1 + 2 * 2**-10]


def test_cast_of_every_bfloat16_to_float32_is_exact() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    stored = as_recipe(ir.tensor(bits.view(ml_dtypes.bfloat16)))
    wide = Cast(stored, ir.DataType.FLOAT).read(whole(bits.shape))
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide.view(np.uint32), bits.astype(np.uint32) << 16)


def test_cast_of_a_transposed_bfloat16() -> None:
    array = numbered((3, 4), ml_dtypes.bfloat16)
    cast = Cast(Transpose(source(array), (1, 0)), ir.DataType.FLOAT).read(whole((4, 3)))
    np.testing.assert_array_equal(cast, array.T.astype(np.float32))
    assert cast.flags.c_contiguous


@pytest.mark.parametrize(
    ("dtype", "to", "value"),
    [
        (np.float32, ir.DataType.FLOAT16, 65520.0),
        (np.float32, ir.DataType.FLOAT16, -1e6),
        (ml_dtypes.bfloat16, ir.DataType.FLOAT16, 1e30),
        (np.float32, ir.DataType.BFLOAT16, 3.4e38),
    ],
)
def test_cast_refuses_what_does_not_fit(dtype: type, to: ir.DataType, value: float) -> None:
    array = np.asarray([1, value, 2], dtype)
    with pytest.raises(ValueError, match=r"a weight of magnitude .* does not fit"):
        Cast(source(array), to).read(whole((3,)))


def test_cast_keeps_the_largest_value_that_fits() -> None:
    array = np.asarray([65504.0, 65519.0], np.float32)
    assert Cast(source(array), ir.DataType.FLOAT16).read(whole((2,))).tolist() == [65504.0, 65504.0]


def test_cast_names_the_largest_magnitude_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="magnitude 90000 does not fit float16"):
        Cast(source(np.asarray([7e4, -9e4, 1], np.float32)), ir.DataType.FLOAT16).read(whole((3,)))


@pytest.mark.parametrize("to", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT])
def test_cast_passes_infinity_and_nan_through(to: ir.DataType) -> None:
    array = np.asarray([np.inf, -np.inf, np.nan, 1], np.float32)
    out = Cast(as_recipe(ir.tensor(array)), to).read(whole((4,))).astype(np.float32)
    np.testing.assert_array_equal(out, array)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_stored_number_that_is_not_finite_is_refused_with_its_position(dtype: type, bad: float) -> None:
    array = numbered((4, 5, 3), dtype)
    array[2, 3, 1] = bad
    with pytest.raises(ValueError, match=r"element \[2, 3, 1\] is"):
        Transpose(source(array), (1, 0, 2)).read((slice(2, 5), slice(1, 4), slice(0, 3)))


def test_large_finite_numbers_are_not_refused() -> None:
    array = np.full((8, 8), np.finfo(np.float32).max, np.float32)  # their sum overflows
    np.testing.assert_array_equal(source(array).numpy(), array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scalar_stays_a_scalar(dtype: type) -> None:
    array = np.asarray(3, dtype)
    for recipe in (source(array), as_recipe(ir.tensor(array)), Cast(as_recipe(ir.tensor(array)), ir.DataType.FLOAT)):
        assert recipe.numpy().shape == () and float(recipe.numpy()) == 3


def test_a_tensor_in_memory_becomes_a_recipe() -> None:
    array = numbered((3, 4))
    recipe = as_recipe(ir.tensor(array))
    assert isinstance(recipe, Constant)
    np.testing.assert_array_equal(recipe.read((slice(1, 3), slice(0, 2))), array[1:3, 0:2])


def test_a_recipe_is_not_wrapped_again() -> None:
    recipe = source(numbered((2,)))
    assert as_recipe(recipe) is recipe


def test_nothing_is_read_before_it_is_asked_for() -> None:
    part = Source(UnreadableData((4, 6, 8), ml_dtypes.bfloat16))
    halves = [Transpose(Slice(part, 2, start, start + 4), (0, 2, 1)) for start in (0, 4)]
    recipe = Cast(Interleave(halves, 1), ir.DataType.FLOAT)
    assert (recipe.dims, recipe.dtype, recipe.nbytes) == ((4, 8, 6), ir.DataType.FLOAT, 4 * 8 * 6 * 4)
    with pytest.raises(AssertionError, match="read"):
        recipe.read(whole(recipe.dims))


@given(st.data())
def test_only_the_elements_a_region_needs_are_read(data: st.DataObject) -> None:
    stored = ArrayData(numbered((3, 4, 6)))
    halves = [Transpose(Slice(Source(stored), 2, start, start + 3), (0, 2, 1)) for start in (0, 3)]
    region = data.draw(regions((3, 6, 4)))
    wanted = Cast(Interleave(halves, 1), ir.DataType.FLOAT).read(region)
    read = [value for asked in stored.regions for value in stored.array[asked].flat]
    assert sorted(read) == sorted(wanted.flat)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 4)])
def test_slice_refuses_bounds_outside(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="outside axis 0"):
        Slice(source(numbered((3, 4))), 0, start, stop)


@pytest.mark.parametrize("perm", [(0, 0), (0,), (0, 2), (0, 1, 2)])
def test_transpose_refuses_what_is_no_permutation(perm: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not permute"):
        Transpose(source(numbered((3, 4))), perm)


@pytest.mark.parametrize("other", [numbered((2, 4)), numbered((3, 4), np.float16)])
def test_interleave_refuses_parts_that_differ(other: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be the same"):
        Interleave([source(numbered((3, 4))), source(other)], 0)


def _quantized(rows: int, width: int = 64) -> QuantizedWeight:
    values = np.random.default_rng(rows).standard_normal((rows, width)).astype(np.float32)
    return QuantizedWeight(source(values), Scheme("int4", 32, symmetric=False))


@settings(deadline=None)  # the first example loads the kernels
@given(st.data())
def test_a_stack_is_its_parts_one_below_the_other(data: st.DataObject) -> None:
    weights = [_quantized(rows) for rows in data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))]
    stack = Stack([weight.codes for weight in weights])
    start = data.draw(st.integers(0, stack.lead[0] - 1))
    stop = data.draw(st.integers(start + 1, stack.lead[0]))
    expected = [np.concatenate(part) for part in zip(*(w.evaluate(whole(w.lead)) for w in weights), strict=True)]
    got = stack.evaluate((slice(start, stop),))
    assert len(got) == len(stack.outputs) == 3
    for found, everything in zip(got, expected, strict=True):
        np.testing.assert_array_equal(found, everything[start:stop])


@pytest.mark.parametrize(
    "other", [_quantized(3, 96), QuantizedWeight(source(np.ones((3, 64), np.float32)), Scheme("int8", 32))]
)
def test_a_stack_refuses_rows_that_differ(other: QuantizedWeight) -> None:
    with pytest.raises(ValueError, match="alike"):
        Stack([_quantized(2).codes, other.codes])


def test_a_stack_refuses_rows_that_share_a_scale() -> None:
    square = QuantizedWeight(source(np.ones((4, 128), np.float32)), Scheme("fp8", 128))
    with pytest.raises(ValueError, match="alone"):
        Stack([square.codes, square.codes])


def test_swapping_axes_takes_a_transposition_back() -> None:
    stored = source(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    recipe = swapped(Cast(Transpose(stored, (0, 2, 1)), ir.DataType.FLOAT16))
    assert isinstance(recipe, Cast) and recipe.part is stored
    np.testing.assert_array_equal(swapped(stored).numpy(), stored.numpy().transpose(0, 2, 1))
    assert isinstance(swapped(Transpose(stored, (2, 1, 0))), Transpose)


class Packed(Evaluation):
    """Bytes of every value, as INT4 pairs and as INT8."""

    def __init__(self) -> None:
        super().__init__((16,))
        self.outputs = (Output(self, 0, ir.DataType.INT4, (16, 32)), Output(self, 1, ir.DataType.INT8, (16, 16)))

    def evaluate(self, region: Region) -> tuple[np.ndarray, ...]:
        rows = np.arange(256, dtype=np.uint8).reshape(16, 16)[region]
        return rows, rows


def test_signed_outputs_are_evaluated_to_bytes_and_read_as_numbers() -> None:
    pairs, numbers = Packed().outputs
    data = np.arange(256).reshape(16, 16)
    signed = np.stack([data & 15, data >> 4], axis=-1).reshape(16, 32)
    np.testing.assert_array_equal(pairs.numpy().astype(int), np.where(signed > 7, signed - 16, signed))
    np.testing.assert_array_equal(
        pairs.read((slice(3, 5), slice(1, 7))).astype(int), pairs.numpy().astype(int)[3:5, 1:7]
    )
    np.testing.assert_array_equal(numbers.numpy(), np.where(data > 127, data - 256, data))
    assert pairs.tobytes() == numbers.tobytes() == bytes(range(256))
