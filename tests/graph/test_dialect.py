"""Each dialect function, alone in ONNX Runtime, against a definition in plain NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from l4export.graph.dialect import DOMAIN, NO_LIMIT, dialect_functions, is_dialect
from tiny_graphs import call, decoder_feeds, one_layer, reference, run, tiny_config

INT64, FLOAT, FLOAT16, BOOL = ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BOOL
REFUSED = "rows_must_be_padded_on_the_right"

# Sums of up to 64 float32 products of order one, each rounded to 6e-8, in another order than NumPy's.
SUMS = {"rtol": 1e-5, "atol": 1e-5}
# A handful of float32 operations on one element.
ELEMENT = {"rtol": 1e-6, "atol": 1e-6}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def padded(lengths: list[int]) -> np.ndarray:
    return (np.arange(max(lengths)) < np.asarray(lengths)[:, None]).astype(np.int64)


# SequenceLengths


START = np.zeros(1, np.int64)


def sequence_lengths(
    mask: np.ndarray, new_tokens: int, mask_start: Sequence[int] = (0,), cache_start: Sequence[int] = (0,)
) -> list[list[int]]:
    inputs = {"attention_mask": mask, "input_ids": np.zeros((len(mask), new_tokens), np.int64)}
    inputs |= {"mask_start": np.asarray(mask_start), "cache_start": np.asarray(cache_start)}
    return [result.tolist() for result in call("SequenceLengths", inputs, [INT64] * 3, max_context=16)]


@pytest.mark.parametrize(
    ("lengths", "new_tokens", "past", "new", "total"),
    [
        pytest.param([5], 5, [0], [5], [5], id="prefill"),
        pytest.param([6], 1, [5], [1], [6], id="decode"),
        pytest.param([9], 3, [6], [3], [9], id="append"),
        pytest.param([1], 1, [0], [1], [1], id="one token"),
        pytest.param([3, 5, 1], 5, [0, 0, 0], [3, 5, 1], [5], id="ragged prefill"),
        pytest.param([4, 6, 2], 1, [3, 5, 1], [1, 1, 1], [6], id="ragged decode"),
        pytest.param([3, 4], 6, [0, 0], [3, 4], [6], id="every row shorter than the call"),
    ],
)
def test_sequence_lengths(
    lengths: list[int], new_tokens: int, past: list[int], new: list[int], total: list[int]
) -> None:
    assert sequence_lengths(padded(lengths), new_tokens) == [past, new, total]


def test_a_mask_longer_than_every_row_counts_only_ones() -> None:
    assert sequence_lengths(np.asarray([[1, 1, 1, 0, 0]]), 1) == [[2], [1], [3]]


@pytest.mark.parametrize(
    ("lengths", "new_tokens", "mask_start", "past", "total"),
    [
        pytest.param([1], 1, [5], [5], [6], id="decode"),
        pytest.param([3], 3, [6], [6], [9], id="append"),
        pytest.param([4], 1, [5], [8], [9], id="a part of the mask"),
        pytest.param([1, 1, 1], 1, [3, 0, 9], [3, 0, 9], [10], id="ragged decode"),
        pytest.param([2, 2], 2, [7], [7, 7], [9], id="one start for all rows"),
        pytest.param([3, 5, 1], 5, [0, 0, 0], [0, 0, 0], [5], id="ragged prefill"),
    ],
)
def test_a_mask_that_starts_behind_the_cache(
    lengths: list[int], new_tokens: int, mask_start: list[int], past: list[int], total: list[int]
) -> None:
    got = sequence_lengths(padded(lengths), new_tokens, mask_start)
    assert [got[0], got[2]] == [past, total]


def test_a_cache_may_start_at_any_position_below_the_limit() -> None:
    assert sequence_lengths(padded([3]), 2, cache_start=[13]) == sequence_lengths(padded([3]), 2)
    assert sequence_lengths(padded([3, 1]), 3, cache_start=[13, 15])[0] == [0, 0]
    for start in ([14], [14, 0], [0, 16]):
        with pytest.raises(Exception, match="sequence_must_fit_max_context"):
            sequence_lengths(padded([3, 1][: len(start)]), 1, cache_start=start)


@pytest.mark.parametrize(
    ("mask", "new_tokens", "mask_start", "cache_start"),
    [
        pytest.param([[1, 1, 0]], 3, [4], [0], id="padding behind a cache"),
        pytest.param([[1, 1, 1], [1, 1, 0]], 3, [4, 1], [0], id="padding behind the second row's cache"),
        pytest.param([[0]], 1, [4], [0], id="no new token"),
        pytest.param([[1]], 1, [-1], [0], id="negative mask_start"),
        pytest.param([[1]], 1, [0], [-1], id="negative cache_start"),
    ],
)
def test_starts_that_contradict_the_mask_stop_the_run(
    mask: list[list[int]], new_tokens: int, mask_start: list[int], cache_start: list[int]
) -> None:
    with pytest.raises(Exception, match=REFUSED):
        sequence_lengths(np.asarray(mask), new_tokens, mask_start, cache_start)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param([[0, 1, 1]], id="left padding"),
        pytest.param([[1, 1, 1], [0, 0, 1]], id="left padding in the second row"),
        pytest.param([[1, 0, 1]], id="hole"),
        pytest.param([[1, 1, 1], [0, 0, 0]], id="empty row"),
        pytest.param([[0, 0, 0]], id="nothing but an empty row"),
        pytest.param([[2, 1, 0]], id="not a mask"),
        pytest.param([[1, -1, 1]], id="negative"),
    ],
)
def test_a_mask_of_another_form_stops_the_run(mask: list[list[int]]) -> None:
    with pytest.raises(Exception, match=REFUSED):
        sequence_lengths(np.asarray(mask), 1)


def test_the_refusal_names_the_node_in_a_whole_model() -> None:
    config = one_layer()
    feeds = decoder_feeds(config, [4], 4)
    feeds["attention_mask"] = np.asarray([[0, 1, 1, 1]])
    with pytest.raises(Exception, match=REFUSED):
        run(reference(config), feeds)


# ChunkLengths


def chunk_lengths(past: list[int], new: list[int], tokens: int, start: list[int], chunk: int = 5) -> list[list[int]]:
    inputs = {"past_length": np.asarray(past), "new_length": np.asarray(new)}
    inputs |= {"input_ids": np.zeros((len(past), tokens), np.int64), "cache_start": np.asarray(start)}
    return [result.tolist() for result in call("ChunkLengths", inputs, [INT64] * 3, chunk_size=chunk)]


@pytest.mark.parametrize(
    ("past", "new", "tokens", "start", "chunk_past", "total"),
    [
        pytest.param([0], [5], 5, [0], [0], [5], id="a whole chunk"),
        pytest.param([5], [1], 1, [0], [0], [1], id="the next chunk begins"),
        pytest.param([13], [2], 2, [0], [3], [5], id="the end of a chunk"),
        pytest.param([4, 7, 10], [1, 1, 1], 1, [0], [4, 2, 0], [5], id="rows in different chunks"),
        pytest.param([0, 0], [2, 4], 4, [0], [0, 0], [4], id="ragged prefill"),
        pytest.param([0], [2], 2, [33], [0], [2], id="a cache that starts within a chunk"),
        pytest.param([1], [1], 1, [33], [1], [2], id="its slots count from there"),
        pytest.param([2, 6], [1, 1], 1, [33, 9_999_999], [0, 0], [1], id="until the next chunk"),
        pytest.param([3, 6], [1, 1], 1, [33, 9_999_998], [1, 4], [5], id="whose slots count as ever"),
    ],
)
def test_chunk_lengths(
    past: list[int], new: list[int], tokens: int, start: list[int], chunk_past: list[int], total: list[int]
) -> None:
    assert chunk_lengths(past, new, tokens, start) == [chunk_past, new, total]


@pytest.mark.parametrize(
    ("past", "new", "tokens", "start"),
    [
        pytest.param([0], [6], 6, [0], id="longer than a chunk"),
        pytest.param([4], [2], 2, [0], id="over the end of a chunk"),
        pytest.param([0], [3], 3, [33], id="over the end of the chunk in which the cache starts"),
        pytest.param([2, 4], [2, 2], 2, [0], id="in the second row"),
        pytest.param([0, 0], [5, 3], 6, [0], id="padding that has no slot"),
    ],
)
def test_new_tokens_of_two_chunks_stop_the_run(past: list[int], new: list[int], tokens: int, start: list[int]) -> None:
    with pytest.raises(Exception, match="new_tokens_must_stay_in_one_chunk"):
        chunk_lengths(past, new, tokens, start)


# Slots, Positions, RotaryAngles


def test_slots_count_on_from_the_past_of_each_row() -> None:
    inputs = {"past_length": np.asarray([0, 7]), "input_ids": np.zeros((2, 3), np.int64)}
    assert call("Slots", inputs, [INT64])[0].tolist() == [[0, 1, 2], [7, 8, 9]]


@pytest.mark.parametrize("start", [[0], [9_999_900], [5, 0]])
def test_positions_are_slots_from_where_the_cache_starts(start: list[int]) -> None:
    inputs = {"slots": np.asarray([[0, 1], [7, 8]]), "cache_start": np.asarray(start)}
    expected = inputs["slots"] + np.asarray(start)[:, None]
    np.testing.assert_array_equal(call("Positions", inputs, [INT64])[0], expected)


def test_rotary_angles_take_the_product_in_float32() -> None:
    slots = np.asarray([[0, 1, 8191], [131071, 1000003, 9999999]])
    inv_freq = (500000.0 ** (-np.arange(0, 16, 2) / 16)).astype(np.float32)
    cos, sin = call("RotaryAngles", {"slots": slots, "inv_freq": inv_freq}, [FLOAT, FLOAT])
    angles = slots.astype(np.float32)[..., None] * inv_freq
    assert angles.dtype == np.float32
    np.testing.assert_allclose(cos, np.cos(angles.astype(np.float64)), **ELEMENT)
    np.testing.assert_allclose(sin, np.sin(angles.astype(np.float64)), **ELEMENT)


# QKNorm


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_qk_norm_divides_each_head_by_its_rms(epsilon: float) -> None:
    x = random(2, 3, 4 * 8) * np.linspace(0.01, 10, 32, dtype=np.float32)
    heads = x.astype(np.float64).reshape(2, 3, 4, 8)
    expected = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + epsilon)
    y = call("QKNorm", {"x": x}, [FLOAT], num_heads=4, head_dim=8, epsilon=epsilon)[0]
    np.testing.assert_allclose(y, expected.reshape(x.shape), **ELEMENT)


def test_qk_norm_of_zeros_is_zero() -> None:
    y = call("QKNorm", {"x": np.zeros((1, 1, 8), np.float32)}, [FLOAT], num_heads=2, head_dim=4, epsilon=1e-5)[0]
    assert not y.any()


# Temperature


def temperature(positions: list[int], floor_scale: float, attn_scale: float = 0.1) -> np.ndarray:
    inputs = {"q": np.ones((1, len(positions), 2), np.float32), "positions": np.asarray([positions])}
    return call("Temperature", inputs, [FLOAT], floor_scale=floor_scale, attn_scale=attn_scale)[0][0, :, 0]


@pytest.mark.parametrize(("floor_scale", "attn_scale"), [(8.0, 0.1), (3.0, 0.25), (8192.0, 0.1)])
def test_temperature_around_multiples_of_floor_scale(floor_scale: float, attn_scale: float) -> None:
    multiples = [int(n * floor_scale) for n in (1, 2, 3, 7, 100, 1220)]
    positions = [multiple + near for multiple in multiples for near in (-2, -1, 0)]
    expected = [1 + attn_scale * np.log1p(np.floor((p + 1) / floor_scale)) for p in positions]
    np.testing.assert_allclose(temperature(positions, floor_scale, attn_scale), expected, **ELEMENT)


@pytest.mark.parametrize("floor_scale", [3.0, 5.0, 8.0, 8192.0])
def test_temperature_of_positions_up_to_sixteen_million(floor_scale: float) -> None:
    """position + 1 is exact in float32 below 2^24, and so is the floor of its quotient."""
    near = [int(n * floor_scale) for n in (9_999_900 // floor_scale, (2**24 - 2) // floor_scale)]
    positions = [multiple + offset for multiple in near for offset in (-2, -1, 0)]
    expected = [1 + 0.1 * np.log1p(np.floor((p + 1) / floor_scale)) for p in positions]
    np.testing.assert_allclose(temperature(positions, floor_scale), expected, **ELEMENT)


def test_temperature_is_exactly_one_before_the_first_multiple() -> None:
    assert temperature([0, 1, 8190], 8192.0).tolist() == [1, 1, 1]


def test_temperature_of_scout() -> None:
    positions = [8190, 8191, 2**17 - 1, 2**20 - 1, 10 * 2**20 - 1]
    # the values are known to four decimals
    np.testing.assert_allclose(temperature(positions, 8192.0), [1, 1.0693, 1.2833, 1.4860, 1.7155], atol=5e-5)


def test_temperature_scales_every_element_of_its_token() -> None:
    q, positions = random(2, 3, 8), np.asarray([[0, 7, 8], [15, 16, 30]])
    factor = 1 + 0.1 * np.log1p(np.floor((positions + 1) / 8))
    y = call("Temperature", {"q": q, "positions": positions}, [FLOAT], floor_scale=8.0, attn_scale=0.1)[0]
    np.testing.assert_allclose(y, q * factor[..., None], **ELEMENT)


def test_temperature_keeps_float16() -> None:
    inputs = {"q": np.ones((1, 1, 2), np.float16), "positions": np.asarray([[100_000]])}
    y = call("Temperature", inputs, [FLOAT16], floor_scale=8.0, attn_scale=0.1)[0]
    # position + 1 exceeds float16's range: the factor is taken in float32 and rounded once
    assert y.dtype == np.float16 and y[0, 0, 0] == np.float16(1 + 0.1 * np.log1p(100_001 // 8))


# SplitHeads, AppendToCache, ChunkCausalMask


def test_split_heads() -> None:
    x = random(2, 3, 4 * 8)
    y = call("SplitHeads", {"x": x}, [FLOAT], num_heads=4)[0]
    np.testing.assert_array_equal(y, x.reshape(2, 3, 4, 8).transpose(0, 2, 1, 3))


@pytest.mark.parametrize(
    ("slots", "past_length", "total"),
    [
        pytest.param(0, [0, 0], 3, id="grow from nothing"),
        pytest.param(5, [5, 5], 8, id="grow"),
        pytest.param(5, [5, 2], 8, id="grow, ragged"),
        pytest.param(10, [4, 4], 7, id="in place"),
        pytest.param(10, [7, 0], 10, id="in place, ragged, to the end"),
    ],
)
def test_append_to_cache(slots: int, past_length: list[int], total: int) -> None:
    past, x = random(2, 2, slots, 4), random(2, 3, 2 * 4, seed=1)
    inputs = {"past": past, "x": x, "past_length": np.asarray(past_length), "total_length": np.asarray([total])}
    expected = np.zeros((2, 2, max(slots, total), 4), np.float32)
    expected[:, :, :slots] = past
    for row, start in enumerate(past_length):
        expected[row, :, start : start + 3] = x[row].reshape(3, 2, 4).transpose(1, 0, 2)
    np.testing.assert_array_equal(call("AppendToCache", inputs, [FLOAT], num_heads=2)[0], expected)


@pytest.mark.parametrize("start", [[0, 0], [3, 9_999_999]])
@pytest.mark.parametrize("chunk", [1, 4, 5, 100, NO_LIMIT])
def test_chunk_causal_mask(chunk: int, start: list[int]) -> None:
    slots = np.asarray([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]])
    inputs = {"slots": slots, "cache_start": np.asarray(start), "present_key": np.zeros((2, 1, 13, 2), np.float32)}
    mask = call("ChunkCausalMask", inputs, [BOOL], chunk_size=chunk)[0]
    expected = [
        [[[k <= q and (s + k) // chunk == (s + q) // chunk for k in range(13)] for q in row]]
        for row, s in zip(slots.tolist(), start, strict=True)
    ]
    np.testing.assert_array_equal(mask, expected)


# Attention


def plain_attention(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, positions: np.ndarray, heads: int, chunk: int
) -> np.ndarray:
    """q [B, S, H*d], keys and values [B, K, T, d] -> [B, S, H*d], one query at a time, in float64."""
    batch, tokens, _ = q.shape
    kv_heads, width = keys.shape[1], keys.shape[3]
    out = np.zeros((batch, tokens, heads, width))
    for b, s, h in np.ndindex(batch, tokens, heads):
        at = int(positions[b, s])
        seen = slice(at // chunk * chunk, at + 1)
        group = h // (heads // kv_heads)
        query = q[b, s].reshape(heads, width)[h].astype(np.float64)
        scores = keys[b, group, seen] @ query / np.sqrt(width)
        weights = np.exp(scores - scores.max())
        out[b, s, h] = weights / weights.sum() @ values[b, group, seen]
    return out.reshape(batch, tokens, heads * width)


@pytest.mark.parametrize("chunk", [4, 7, NO_LIMIT])
@pytest.mark.parametrize(
    ("past_length", "new", "slots", "tokens"),
    [
        pytest.param([0, 0], [9, 9], 0, 9, id="prefill"),
        pytest.param([0, 0], [9, 5], 0, 9, id="ragged prefill"),
        pytest.param([8, 8], [1, 1], 8, 1, id="decode"),
        pytest.param([8, 3], [1, 1], 8, 1, id="ragged decode"),
        pytest.param([6, 6], [5, 5], 20, 5, id="append in place"),
    ],
)
def test_attention(past_length: list[int], new: list[int], slots: int, tokens: int, chunk: int) -> None:
    heads, kv_heads, width = 6, 2, 4
    q = random(2, tokens, heads * width)
    k, v = (random(2, tokens, kv_heads * width, seed=seed) for seed in (1, 2))
    # what lies in slots no token was written to must not be seen: it is large
    past_key, past_value = (np.full((2, kv_heads, slots, width), 1e4, np.float32) for _ in "kv")
    keys, values = (np.zeros((2, kv_heads, max(slots, max(past_length) + tokens), width), np.float32) for _ in "kv")
    for row, length in enumerate(past_length):
        past_key[row, :, :length] = keys[row, :, :length] = random(kv_heads, length, width, seed=3 + row)
        past_value[row, :, :length] = values[row, :, :length] = random(kv_heads, length, width, seed=5 + row)
        keys[row, :, length : length + tokens] = k[row].reshape(tokens, kv_heads, width).transpose(1, 0, 2)
        values[row, :, length : length + tokens] = v[row].reshape(tokens, kv_heads, width).transpose(1, 0, 2)
    positions = np.asarray(past_length)[:, None] + np.arange(tokens)
    total = max(past + count for past, count in zip(past_length, new, strict=True))
    inputs = {"q": q, "k": k, "v": v, "past_key": past_key, "past_value": past_value, "slots": positions}
    inputs |= {"past_length": np.asarray(past_length), "total_length": np.asarray([max(total, tokens)])}
    inputs |= {"cache_start": START}
    attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "chunk_size": chunk}
    y, present_key, present_value = call("Attention", inputs, [FLOAT] * 3, **attributes)
    expected = plain_attention(q, keys, values, positions, heads, chunk)
    for row, count in enumerate(new):
        end = past_length[row] + count
        np.testing.assert_allclose(y[row, :count], expected[row, :count], **SUMS)
        np.testing.assert_array_equal(present_key[row, :, :end], keys[row, :, :end])
        np.testing.assert_array_equal(present_value[row, :, :end], values[row, :, :end])


# MoE


@pytest.mark.parametrize("k", [1, 2, 3])
def test_moe_scales_the_inputs_of_the_chosen_experts(k: int) -> None:
    x, logits = random(2, 5, 8), random(2, 5, 4, seed=1) * 2
    gate_up, down = random(4, 8, 2 * 6, seed=2), random(4, 6, 8, seed=3)
    y = call("MoE", {"x": x, "router_logits": logits, "gate_up": gate_up, "down": down}, [FLOAT], k=k)[0]
    expected = np.zeros(x.shape)
    for b, s in np.ndindex(2, 5):
        for expert in np.argsort(-logits[b, s])[:k]:
            score = 1 / (1 + np.exp(-logits[b, s, expert].astype(np.float64)))
            gate, up = np.split(score * x[b, s] @ gate_up[expert], 2)
            expected[b, s] += gate / (1 + np.exp(-gate)) * up @ down[expert]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)  # results are of order 30: SUMS, scaled


def test_moe_gives_a_tie_to_the_lowest_expert() -> None:
    x, down = np.ones((1, 1, 2), np.float32), np.ones((3, 1, 2), np.float32)
    gate_up = np.asarray([0, 1, 2], np.float32)[:, None, None] * np.ones((3, 2, 2), np.float32)
    logits = np.asarray([[[-1, 5, 5]]], np.float32)
    y = call("MoE", {"x": x, "router_logits": logits, "gate_up": gate_up, "down": down}, [FLOAT], k=1)[0]
    a = 2 / (1 + np.exp(-5))
    np.testing.assert_allclose(y, np.full((1, 1, 2), a * a / (1 + np.exp(-a))), **ELEMENT)


# KeepLastPositions


@pytest.mark.parametrize(
    ("new_length", "keep", "expected"),
    [
        pytest.param([5, 5], 0, [[0, 1, 2, 3, 4]] * 2, id="0 keeps all"),
        pytest.param([5, 5], 1, [[4], [4]], id="the last"),
        pytest.param([5, 5], 3, [[2, 3, 4]] * 2, id="the last three"),
        pytest.param([5, 5], 9, [[0, 1, 2, 3, 4]] * 2, id="more than there are"),
        pytest.param([5, 5], -1, [[0, 1, 2, 3, 4]] * 2, id="negative keeps all"),
        pytest.param([3, 5], 1, [[2], [4]], id="ragged, the last"),
        pytest.param([3, 5], 2, [[1, 2], [3, 4]], id="ragged, the last two"),
        pytest.param([1, 5], 3, [[0, 1, 2], [2, 3, 4]], id="a row with fewer gives them first"),
        pytest.param([3, 1], 0, [[0, 1, 2, 3, 4]] * 2, id="ragged, 0 keeps all"),
    ],
)
def test_keep_last_positions(new_length: list[int], keep: int, expected: list[list[int]]) -> None:
    hidden = random(2, 5, 3)
    inputs = {"hidden": hidden, "new_length": np.asarray(new_length), "logits_to_keep": np.asarray(keep)}
    kept = call("KeepLastPositions", inputs, [FLOAT])[0]
    np.testing.assert_array_equal(kept, np.stack([hidden[row, at] for row, at in enumerate(expected)]))


# The dialect as a whole


@pytest.mark.parametrize("variant", ["scout", "maverick", "guard", "mobile"])
def test_a_model_in_the_dialect_is_valid_onnx(variant: str) -> None:
    onnx.checker.check_model(ir.to_proto(reference(tiny_config(variant))), full_check=True)


def test_every_function_is_documented() -> None:
    assert all(function.doc_string for function in dialect_functions())


def test_functions_are_fresh_copies() -> None:
    assert all(a is not b for a, b in zip(dialect_functions(), dialect_functions(), strict=True))


def test_is_dialect_looks_at_domain_and_type() -> None:
    ours, standard = ir.Node(DOMAIN, "Attention", []), ir.Node("", "Attention", [])
    assert is_dialect(ours) and is_dialect(ours, "Attention") and not is_dialect(ours, "MoE")
    assert not is_dialect(standard) and not is_dialect(standard, "Attention")
