"""The kernels are compared with plain-NumPy definitions, bit for bit, and with what ONNX Runtime computes."""

from __future__ import annotations

import dataclasses
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from l4export.quantization import Scheme, dequantize, quantize_rows

DTYPES = (ml_dtypes.bfloat16, np.float16, np.float32)
INTEGERS = [Scheme(k, b, s) for k in ("int4", "int8") for b in (16, 32, 64, 128) for s in (True, False)]
POSITIVE = [Scheme("int4", 32, positive=True), Scheme("int8", 16, positive=True)]
INTEGERS += POSITIVE
INTEGERS += [dataclasses.replace(s, fitted=True) for s in (*INTEGERS[:4], *INTEGERS[-4:])]
FP8 = [Scheme("fp8", 0), Scheme("fp8", 128), Scheme("fp8", 0, positive=True)]
HALVES = [dataclasses.replace(s, scale_dtype="float16") for s in (*INTEGERS, *FP8)]
BRAINS = [dataclasses.replace(s, scale_dtype="bfloat16") for s in (*INTEGERS[1::4], *POSITIVE, *INTEGERS[-1:], *FP8)]
BLOCKS = ("normal", "constant", "zero", "tiny", "huge", "denormal", "ties", "positive", "negative", "halves", "sparse")

Result = tuple[np.ndarray, np.ndarray, np.ndarray | None]


# The definitions -----------------------------------------------------------------------------------------------------


def settled(scale: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """The scale as it is stored (widened to float32) and its inverse."""
    scale = scale.astype(np.float32)
    with np.errstate(over="ignore"):
        scale = scale.astype(scheme.scale_dtype).astype(np.float32)
    usable = np.abs(scale) >= np.float32(2.0**-126)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=usable)
    return np.where(usable, scale, np.float32(scheme.positive)), inverse


def nibbles(numbers: np.ndarray) -> np.ndarray:
    if numbers.shape[1] % 2:
        numbers = np.pad(numbers, ((0, 0), (0, 1)))
    return numbers[:, ::2] | numbers[:, 1::2] << 4


def fitted(scale: np.ndarray, w: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The best of four fractions [n, blocks, 1] of each block's scale."""
    top = np.float32(2**scheme.bits - 1)
    best, least = scale.copy(), np.full(scale.shape, np.inf, np.float32)
    for fraction in np.array([1, 0.93, 0.86, 0.79], np.float32):
        tried = scale * fraction
        stored, inverse = settled(tried, scheme)
        zero = np.full(scale.shape, 2 ** (scheme.bits - 1), np.float32)
        if not scheme.symmetric:
            zero = np.clip(np.round(-np.minimum(w.min(-1, keepdims=True), 0) * inverse), 0, top)
        error = np.zeros(scale.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # huge weights: an error that is no number is not the least
            values = (np.clip(np.round(w * inverse) + zero, 0, top) - zero) * stored
            for i in range(scheme.block_size):
                error[..., 0] += (w[..., i] - values[..., i]) ** 2
        best, least = np.where(error < least, tried, best), np.where(error < least, error, least)
    return best


def defined_int(weights: np.ndarray, scheme: Scheme) -> Result:
    n, k = weights.shape
    w = weights.astype(np.float32).reshape(n, k // scheme.block_size, scheme.block_size)
    top, middle = 2**scheme.bits - 1, 2 ** (scheme.bits - 1)
    low, high = np.minimum(w.min(-1, keepdims=True), 0), np.maximum(w.max(-1, keepdims=True), 0)
    if scheme.positive:
        scale = np.abs(w).max(-1, keepdims=True) / np.float32(middle - 1)
    elif scheme.symmetric:
        extreme = np.take_along_axis(w, np.abs(w).argmax(-1)[..., None], -1)  # argmax: the first
        scale = extreme / np.float32(-middle)
    else:
        scale = ((high.astype(np.float64) - low.astype(np.float64)) / top).astype(np.float32)
    if scheme.fitted:
        scale = fitted(scale, w, scheme)
    scale, inverse = settled(scale, scheme)
    zero = np.full(scale.shape, middle, np.float32)
    if not scheme.symmetric:
        zero = np.clip(np.round(-low * inverse), 0, top)
    codes = np.clip(np.round(w * inverse) + zero, 0, top).astype(np.uint8).reshape(n, k)
    codes ^= np.uint8(middle if scheme.positive else 0)
    zeros = None if scheme.symmetric else zero[..., 0].astype(np.uint8)
    if scheme.bits == 4:
        codes, zeros = nibbles(codes), zeros if zeros is None else nibbles(zeros)
    return codes, scale[..., 0].astype(scheme.scale_dtype), zeros


def defined_fp8(weights: np.ndarray, scheme: Scheme) -> Result:
    w = weights.astype(np.float32)
    n, k = w.shape
    rows, columns = (128, 128) if scheme.block_size else (1, k)
    scales = np.empty(scheme.scales_shape(n, k), np.float32)
    codes = np.empty((n, k), ml_dtypes.float8_e4m3fn)
    for i, n0 in enumerate(range(0, n, rows)):
        for j, k0 in enumerate(range(0, k, columns)):
            block = w[n0 : n0 + rows, k0 : k0 + columns]
            scale, inverse = settled(np.abs(block).max(keepdims=True) / np.float32(448), scheme)
            scales[i, j] = scale[0, 0]
            scaled = np.clip(block * inverse, -448, 448)
            codes[n0 : n0 + rows, k0 : k0 + columns] = scaled.astype(ml_dtypes.float8_e4m3fn)
    return codes, scales.astype(scheme.scale_dtype), None


def defined(weights: np.ndarray, scheme: Scheme) -> Result:
    return (defined_fp8 if scheme.kind == "fp8" else defined_int)(weights, scheme)


# Helpers -------------------------------------------------------------------------------------------------------------


def quantized(weights: np.ndarray, scheme: Scheme, transposed: bool = False) -> Result:
    outputs = scheme.allocate(*weights.shape)
    source = np.ascontiguousarray(weights.T) if transposed else weights
    quantize_rows(source, scheme, *outputs, transposed=transposed)
    return outputs


def assert_same(actual: Result, expected: Result) -> None:
    for a, e in zip(actual, expected, strict=True):
        if a is None or e is None:
            assert a is e
        else:
            assert (a.dtype, a.shape) == (e.dtype, e.shape)
            unsigned = f"u{a.itemsize}"
            np.testing.assert_array_equal(a.view(unsigned), e.view(unsigned))


def block_of(kind: str, size: int, dtype: type, rng: np.random.Generator) -> np.ndarray:
    info = ml_dtypes.finfo(dtype)
    x = rng.standard_normal(size)
    match kind:
        case "normal" | "positive" | "negative":
            x = {"normal": x, "positive": np.abs(x), "negative": -np.abs(x)}[kind] * 0.02
        case "constant":
            x[:] = x[0]
        case "zero":
            x[:] = rng.choice([0.0, -0.0], size)
        case "tiny":  # around the border at which scales become zero
            x = np.clip(x, -4, 4) * float(info.smallest_normal) * rng.choice([1, 8, 128, 1024])
        case "huge":
            x = rng.uniform(-1, 1, size) * float(info.max)
            x[rng.integers(size)] = float(info.max) * rng.choice([-1, 1])
        case "denormal":
            x = rng.integers(-20, 20, size) * float(info.smallest_subnormal)
        case "ties":  # in magnitude
            x = rng.choice([1.0, -1.0], size) * rng.choice([0.5, 1.0], size)
        case "halves":  # codes half way between two
            x = rng.integers(-16, 17, size) * 0.5 * 0.25
            x[rng.integers(size)] = 2.0 * rng.choice([-1, 1])
        case "sparse":
            x *= rng.random(size) < 0.05
    return x.astype(dtype)


@st.composite
def matrices(draw: st.DrawFn, unit: int, dtype: type, kinds: tuple[str, ...] = BLOCKS) -> np.ndarray:
    n = draw(st.sampled_from([1, 2, 3, 63, 64, 65, 130]))
    blocks = draw(st.integers(1, 600 // unit))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4))
    rows = [[block_of(str(rng.choice(chosen)), unit, dtype, rng) for _ in range(blocks)] for _ in range(n)]
    return np.array([np.concatenate(row) for row in rows])


def name_of(value: object) -> str | None:
    return value.name if isinstance(value, Scheme) else getattr(value, "__name__", None)


def random_matrix(n: int, k: int, dtype: type = ml_dtypes.bfloat16) -> np.ndarray:
    return (np.random.default_rng(n * k).standard_normal((n, k)) * 0.02).astype(dtype)


# Bit identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", INTEGERS, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_integer_codes_are_the_definition_bit_for_bit(scheme: Scheme, dtype: type) -> None:
    @settings(max_examples=12, deadline=None)
    @given(matrices(scheme.block_size, dtype))
    def check(weights: np.ndarray) -> None:
        expected = defined(weights, scheme)
        assert_same(quantized(weights, scheme), expected)
        assert_same(quantized(weights, scheme, transposed=True), expected)

    check()


@pytest.mark.parametrize("scheme", FP8, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("unit", [1, 7, 16, 128])
def test_fp8_codes_are_the_definition_bit_for_bit(scheme: Scheme, dtype: type, unit: int) -> None:
    @settings(max_examples=6, deadline=None)
    @given(matrices(unit, dtype) if unit > 1 else matrices(unit, dtype, ("normal", "huge", "denormal")))
    def check(weights: np.ndarray) -> None:
        expected = defined(weights, scheme)
        assert_same(quantized(weights, scheme), expected)
        assert_same(quantized(weights, scheme, transposed=True), expected)

    check()


@pytest.mark.parametrize("scheme", HALVES, ids=name_of)
def test_float16_scales_are_rounded_before_the_codes(scheme: Scheme) -> None:
    kinds = tuple(kind for kind in BLOCKS if kind != "huge")

    @settings(max_examples=8, deadline=None)
    @given(
        matrices(scheme.block_size or 16, np.float32, kinds),
        st.sampled_from([1.0, 2.0**-10, 2.0**-14, 2.0**-18, 2.0**-21]),
    )
    def check(weights: np.ndarray, factor: float) -> None:
        weights = (weights * np.float32(factor)).astype(np.float32)
        expected = defined(weights, scheme)
        assert_same(quantized(weights, scheme), expected)
        assert_same(quantized(weights, scheme, transposed=True), expected)

    check()


@pytest.mark.parametrize("scheme", BRAINS, ids=name_of)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32], ids=name_of)
def test_bfloat16_scales_are_rounded_before_the_codes(scheme: Scheme, dtype: type) -> None:
    @settings(max_examples=8, deadline=None)
    @given(matrices(scheme.block_size or 16, dtype))
    def check(weights: np.ndarray) -> None:
        expected = defined(weights, scheme)
        assert_same(quantized(weights, scheme), expected)
        assert_same(quantized(weights, scheme, transposed=True), expected)

    check()


@pytest.mark.parametrize("scheme", [*INTEGERS, *FP8], ids=name_of)
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_larger_than_a_tile(scheme: Scheme, transposed: bool) -> None:
    weights = random_matrix(197, 4096 + 384)
    assert_same(quantized(weights, scheme, transposed), defined(weights, scheme))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=name_of)
@pytest.mark.parametrize("scheme", FP8, ids=name_of)
def test_every_finite_16_bit_number(dtype: type, scheme: Scheme) -> None:
    numbers = np.arange(2**16, dtype=np.uint16).view(dtype)
    weights = numbers[np.isfinite(numbers.astype(np.float32))].reshape(-1, 256)
    assert_same(quantized(weights, scheme), defined(weights, scheme))


def test_every_scale_is_rounded_to_float16_like_numpy() -> None:
    patterns = np.arange(0, 2**32, 2**32 // 300_001, dtype=np.uint64).astype(np.uint32)
    borders = np.arange(0x33000000, 0x47800000, 0x1000, dtype=np.uint32)  # ties and their even and odd neighbours
    values = np.concatenate([patterns, borders, borders + 1, borders - 1]).view(np.float32)
    values = values[np.abs(values) < 65520 * 8]
    weights = np.zeros((values.size, 16), np.float32)
    weights[:, 3] = values
    scheme = Scheme("int4", 16, True, "float16")
    assert_same(quantized(weights, scheme), defined(weights, scheme))


def test_every_scale_is_rounded_to_bfloat16_like_ml_dtypes() -> None:
    patterns = np.arange(0, 2**32, 2**32 // 300_001, dtype=np.uint64).astype(np.uint32)
    borders = np.arange(0x00800000, 0x7F000000, 0x8000, dtype=np.uint32)  # ties and their even and odd neighbours
    values = np.concatenate([patterns, borders, borders + 1, borders - 1]).view(np.float32)
    values = values[np.isfinite(values)]
    weights = np.zeros((values.size, 16), np.float32)
    weights[:, 3] = values
    scheme = Scheme("int4", 16, True, "bfloat16")
    assert_same(quantized(weights, scheme), defined(weights, scheme))


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_the_signed_extreme_is_exact_and_the_first_of_a_tie_wins(kind: str) -> None:
    scheme = Scheme(kind, 16)
    weights = np.zeros((4, 16), np.float32)
    weights[0, 5], weights[1, 5] = 0.7, -0.7
    weights[2, [3, 9]] = 0.3, -0.3
    weights[3, [3, 9]] = -0.3, 0.3
    codes, scales, _ = quantized(weights, scheme)
    np.testing.assert_array_equal(np.sign(scales[:, 0]), [-1, 1, -1, 1])
    back = dequantize(codes, scales, None, scheme)
    np.testing.assert_array_equal(back[[0, 1, 2, 3], [5, 5, 3, 3]], weights[[0, 1, 2, 3], [5, 5, 3, 3]])


@pytest.mark.parametrize("scheme", [*INTEGERS, *FP8], ids=name_of)
def test_an_all_zero_matrix_dequantises_to_zero(scheme: Scheme) -> None:
    codes, scales, zeros = quantized(np.zeros((3, 256), np.float32), scheme)
    assert (scales == scheme.positive).all()
    assert not np.signbit(scales).any()
    assert not dequantize(codes, scales, zeros, scheme).any()


@pytest.mark.parametrize("scheme", [*INTEGERS, *FP8], ids=name_of)
def test_dequantised_weights_are_near(scheme: Scheme) -> None:
    weights = random_matrix(130, 384, np.float32)
    back = dequantize(*quantized(weights, scheme), scheme)
    step = np.abs(weights).max() / {"int4": 7, "int8": 127, "fp8": 16}[scheme.kind]
    assert back.dtype == np.float32
    assert np.abs(back - weights).max() <= step


# Placement -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme", [Scheme("int4", 32), Scheme("int4", 16, False), Scheme("int8", 64), FP8[0]], ids=name_of
)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("step", [1, 2])
def test_gate_and_up_side_by_side(scheme: Scheme, transposed: bool, step: int) -> None:
    n, k = 70, 192
    gate_up = random_matrix(2 * n, k)
    stored = np.ascontiguousarray(gate_up.T) if transposed else gate_up
    parts = (stored[:, :n], stored[:, n:]) if transposed else (stored[:n], stored[n:])  # strided when transposed
    outputs = scheme.allocate(2 * n, k)
    for i, part in enumerate(parts):
        quantize_rows(
            part, scheme, *outputs, row_start=i * (1 if step == 2 else n), row_step=step, transposed=transposed
        )
    order = np.arange(2 * n).reshape(2, n).T.ravel() if step == 2 else np.arange(2 * n)
    assert_same(outputs, defined(gate_up[order], scheme))


def test_rows_that_are_not_written_stay_and_rows_may_be_strided() -> None:
    scheme = Scheme("int4", 16, False)
    weights = random_matrix(5, 256)
    outputs = scheme.allocate(12, 96)
    for array in outputs:
        assert array is not None
        array.view(np.uint8)[:] = 7
    quantize_rows(weights[:, 32:128], scheme, *outputs, row_start=1, row_step=2)
    for array, expected in zip(outputs, defined(weights[:, 32:128], scheme), strict=True):
        assert array is not None
        np.testing.assert_array_equal(array[1:11:2], expected)
        assert (np.delete(array, np.arange(1, 11, 2), 0).view(np.uint8) == 7).all()


def test_fp8_blocks_start_at_a_multiple_of_128() -> None:
    scheme = FP8[1]
    weights = random_matrix(300, 200)
    outputs = scheme.allocate(300, 200)
    quantize_rows(weights[:256], scheme, *outputs)
    quantize_rows(weights[256:], scheme, *outputs, row_start=256)
    assert_same(outputs, defined(weights, scheme))
    for start, step in ((64, 1), (0, 2)):
        with pytest.raises(ValueError, match="128x128"):
            quantize_rows(weights[:10], scheme, *outputs, row_start=start, row_step=step)


@pytest.mark.parametrize("scheme", [*INTEGERS, HALVES[0]], ids=name_of)
@pytest.mark.parametrize("transposed", [False, True])
def test_columns_can_be_written_in_pieces(scheme: Scheme, transposed: bool) -> None:
    block = scheme.block_size
    weights = random_matrix(70, 7 * block)
    outputs = scheme.allocate(*weights.shape)
    for start, stop in ((0, block), (block, 4 * block), (4 * block, 7 * block)):
        part = weights[:, start:stop]
        source = np.ascontiguousarray(part.T) if transposed else part
        quantize_rows(source, scheme, *outputs, transposed=transposed, column_start=start)
    assert_same(outputs, defined(weights, scheme))


@pytest.mark.parametrize("transposed", [False, True])
def test_threads_write_what_one_call_writes(transposed: bool) -> None:
    scheme = Scheme("int4", 32, False)
    weights = random_matrix(513, 1024)
    source = np.ascontiguousarray(weights.T) if transposed else weights
    outputs = scheme.allocate(*weights.shape)

    def part(start: int) -> None:
        view = source[:, start : start + 100] if transposed else source[start : start + 100]
        quantize_rows(view, scheme, *outputs, row_start=start, transposed=transposed)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(part, range(0, 513, 100)))
    assert_same(outputs, defined(weights, scheme))


def test_the_gil_is_released() -> None:
    scheme = Scheme("int4", 32)
    quantized(random_matrix(1, 128), scheme)  # compiled
    weights = np.ones((4000, 8192), ml_dtypes.bfloat16)
    outputs = scheme.allocate(*weights.shape)
    worker = threading.Thread(target=quantize_rows, args=(weights, scheme, *outputs))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # only a released GIL lets this thread run
    try:
        worker.start()
        turns = 0
        while worker.is_alive():
            turns += 1
            worker.join(0.001)
    finally:
        sys.setswitchinterval(before)
    assert turns > 2


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [Scheme("int4", 32), Scheme("int8", 16, False), *FP8], ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("transposed", [False, True])
def test_non_finite_weights_are_named(scheme: Scheme, dtype: type, bad: float, transposed: bool) -> None:
    source = np.ones((200, 320), dtype)
    for row, column in ((0, 0), (131, 259), (199, 319)):
        broken = source.copy()
        broken[row, column] = bad
        broken[199, 319] = bad  # a later one
        source_scheme = scheme if not transposed or scheme.kind == "fp8" else Scheme(scheme.kind, scheme.block_size)
        shape = (320, 192) if transposed else (200, 320)
        view = broken[:192] if transposed and row < 192 else broken[8:] if transposed else broken
        at = row - 8 if transposed and row >= 192 else row
        with pytest.raises(ValueError, match=rf"\(row {at}, column {column}\) is -?(nan|inf)"):
            quantize_rows(view, source_scheme, *source_scheme.allocate(*shape), transposed=transposed)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "scheme", [Scheme("int4", 32, True, "float16"), Scheme("fp8", 0, True, "float16")], ids=name_of
)
def test_a_scale_that_float16_cannot_hold(scheme: Scheme, transposed: bool) -> None:
    weights = np.ones((3, 64), np.float32)
    weights[1, 40] = 1e9
    with pytest.raises(ValueError, match="too large for float16"):
        quantized(weights, scheme, transposed)


def test_arguments_that_do_not_fit() -> None:
    scheme = Scheme("int4", 32)
    weights = random_matrix(4, 64)
    codes, scales, _ = scheme.allocate(4, 64)
    with pytest.raises(ValueError, match="does not divide the 48 input features"):
        quantize_rows(weights[:, :48], scheme, codes, scales)
    with pytest.raises(ValueError, match="outside codes"):
        quantize_rows(weights, scheme, codes, scales, row_start=1)
    for column in (16, 32, -32):
        with pytest.raises(ValueError, match="are not whole blocks of 64 columns"):
            quantize_rows(weights, scheme, codes, scales, column_start=column)
    with pytest.raises(ValueError, match="scales are float16"):
        quantize_rows(weights, scheme, codes, np.empty((4, 2), np.float16))
    with pytest.raises(ValueError, match="zero points"):
        quantize_rows(weights, scheme, codes, scales, codes)
    with pytest.raises(ValueError, match="need of zero points"):
        quantize_rows(weights, Scheme("int4", 32, False), codes, scales)
    with pytest.raises(ValueError, match="not contiguous"):
        quantize_rows(random_matrix(4, 128)[:, ::2], scheme, codes, scales)
    with pytest.raises(ValueError, match="cannot quantise float64"):
        quantize_rows(weights.astype(np.float64), scheme, codes, scales)
    with pytest.raises(ValueError, match="C-contiguous"):
        quantize_rows(weights, scheme, np.asfortranarray(codes), scales)
    with pytest.raises(ValueError, match="no block size 24"):
        Scheme("int4", 24)
    with pytest.raises(ValueError, match="fp8 is symmetric"):
        Scheme("fp8", 0, False)


def test_names_are_unique_and_lead_back() -> None:
    schemes = [*INTEGERS, *FP8, *HALVES]
    assert len({scheme.name for scheme in schemes}) == len(schemes)
    assert all(Scheme.named(scheme.name) == scheme for scheme in schemes)
    with pytest.raises(ValueError, match="unknown quantisation scheme 'int3'"):
        Scheme.named("int3")


def test_read_only_sources_and_empty_matrices() -> None:
    scheme = Scheme("int4", 32)
    weights = random_matrix(4, 64)
    weights.flags.writeable = False
    assert_same(quantized(weights, scheme), defined(weights, scheme))
    quantize_rows(weights[:0], scheme, *scheme.allocate(0, 64))


# ONNX Runtime --------------------------------------------------------------------------------------------------------


def run(node: onnx.NodeProto, feeds: dict[str, np.ndarray], constants: dict[str, np.ndarray | None]) -> np.ndarray:
    initializers = []
    for name, array in constants.items():
        if array is not None:
            initializers.append(onnx.numpy_helper.from_array(array, name))
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feeds.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feeds)[0])


@pytest.mark.parametrize("scheme", [s for s in INTEGERS if not s.positive], ids=name_of)
@pytest.mark.parametrize("kind", ["normal", "constant", "zero", "ties", "positive", "negative", "sparse"])
def test_matmulnbits_reads_the_dequantised_weights(scheme: Scheme, kind: str) -> None:
    n, k, rng = 24, 384, np.random.default_rng(5)
    weights = np.array([block_of(kind, k, np.float32, rng) for _ in range(n)])
    codes, scales, zeros = quantized(weights, scheme)
    blobs = codes.reshape(n, k // scheme.block_size, -1)
    inputs = ["a", "b", "s", *([] if zeros is None else ["z"])]
    attributes = {"K": k, "N": n, "bits": scheme.bits, "block_size": scheme.block_size, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **attributes)
    y = run(node, {"a": np.eye(k, dtype=np.float32)}, {"b": blobs, "s": scales, "z": zeros})
    np.testing.assert_array_max_ulp(y.T, dequantize(codes, scales, zeros, scheme), 1)


@pytest.mark.parametrize("scheme", [Scheme("int4", 32), Scheme("int4", 64), Scheme("int4", 32, False)], ids=name_of)
def test_qmoe_reads_input_major_experts(scheme: Scheme) -> None:
    experts, hidden, inner, tokens = 3, 64, 128, 5
    rng = np.random.default_rng(11)
    gate_up = (rng.standard_normal((experts, hidden, 2 * inner)) * 0.1).astype(ml_dtypes.bfloat16)
    down = (rng.standard_normal((experts, inner, hidden)) * 0.1).astype(ml_dtypes.bfloat16)
    first = [scheme.allocate(2 * inner, hidden) for _ in range(experts)]
    second = [scheme.allocate(hidden, inner) for _ in range(experts)]
    for e in range(experts):
        for i in range(2):
            part = gate_up[e][:, i * inner : (i + 1) * inner]
            quantize_rows(part, scheme, *first[e], row_start=i, row_step=2, transposed=True)
        quantize_rows(down[e], scheme, *second[e], transposed=True)

    x = rng.standard_normal((tokens, hidden)).astype(np.float32)
    router = rng.standard_normal((tokens, experts)).astype(np.float32)
    expected = np.empty((tokens, hidden), np.float32)
    for t, e in enumerate(router.argmax(1)):
        h = dequantize(*first[e], scheme) @ x[t]
        expected[t] = dequantize(*second[e], scheme) @ (h[::2] / (1 + np.exp(-h[::2])) * h[1::2])

    def stack(outputs: list[Result], i: int) -> np.ndarray | None:
        return None if outputs[0][i] is None else np.stack([o[i] for o in outputs])  # type: ignore[misc]

    constants = {"w1": stack(first, 0), "s1": stack(first, 1), "w2": stack(second, 0), "s2": stack(second, 1)}
    inputs = ["x", "r", "w1", "s1", "", "w2", "s2", "", "", "", ""]
    if not scheme.symmetric:
        constants |= {"z1": stack(first, 2), "z2": stack(second, 2)}
        inputs += ["z1", "z2"]
    node = helper.make_node(
        "QMoE", inputs, ["y"], domain="com.microsoft", k=1, normalize_routing_weights=1, activation_type="swiglu",
        swiglu_fusion=1, activation_alpha=1.0, activation_beta=0.0, expert_weight_bits=4,
        block_size=scheme.block_size, accuracy_level=1, weights_prepacked=0,
    )  # fmt: skip
    y = run(node, {"x": x, "r": router}, constants)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dequantizelinear_reads_fp8_channels(dtype: str) -> None:
    scheme = Scheme("fp8", 0, True, dtype)
    codes, scales, _ = quantized(random_matrix(24, 96), scheme)
    constants = {
        "c": helper.make_tensor("c", TensorProto.FLOAT8E4M3FN, codes.shape, codes.tobytes(), raw=True),
        "s": onnx.numpy_helper.from_array(scales[:, 0].copy(), "s"),
    }
    node = helper.make_node("DequantizeLinear", ["c", "s"], ["y"], axis=0)
    kind = TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16
    output = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph([node], "g", [], [output], list(constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    y = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {})[0]
    np.testing.assert_array_equal(np.asarray(y), dequantize(codes, scales, None, scheme).astype(dtype))
