"""KV caches in other dtypes: what the operator stores and reads, and that engines compute with exactly that."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from kv_definitions import attention, codes, packed, reading, rotated, scales_of, unpacked
from l4export import passes, runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.kv_cache import KV_BITS, KV_DTYPES, kv_bytes
from l4export.errors import InputError
from l4export.graph.builder import GraphBuilder
from l4export.runtimes.engine import Engine
from l4export.runtimes.session import Session
from tiny_graphs import decoder_feeds, graph_input, model_of, one_layer, op_types, reference, run, typed
from workshop import LAYOUTS, Workshop, assert_close, copy_checkpoint, edit_config, random_ids

TOKENS, PREFILL, CHUNK = 80, 50, 16
FLOAT = ir.DataType.FLOAT
NUMPY = {FLOAT: np.float32, ir.DataType.FLOAT16: np.float16}
quantized = pytest.mark.parametrize("kv_dtype", KV_BITS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
variants = pytest.mark.parametrize("variant", ["scout", "maverick"])


class Operator:
    """`GroupQueryAttention` with a quantised cache of `slots` slots, alone, fed call after call."""

    def __init__(
        self, bits: int, width: int, scales: Sequence[np.ndarray], rotates: bool, dtype: ir.DataType, slots: int = 40
    ) -> None:
        self.bits, self.scales, self.dtype = bits, scales, NUMPY[dtype]
        angles = np.multiply.outer(np.arange(slots), np.geomspace(1, 1e-3, width // 2))
        self.tables = [f(angles).astype(self.dtype) for f in (np.cos, np.sin)] if rotates else None
        stored = (1, scales[0].shape[0], slots, width * bits // 8)
        self.caches = [np.zeros(stored, np.int8 if bits == 8 else np.uint8) for _ in "kv"]

    def __call__(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, past: int, bias: np.ndarray | None) -> np.ndarray:
        """q [1, H, S, d], k and v [1, K, S, d] behind `past` tokens -> [1, S, H*d]; the caches take k and v in."""
        total = past + q.shape[2]
        feeds = {
            name: x.transpose(0, 2, 1, 3).reshape(1, q.shape[2], -1) for name, x in zip("qkv", (q, k, v), strict=True)
        }
        feeds |= dict(zip(("past_key", "past_value"), self.caches, strict=True))
        feeds |= {"seqlens_k": np.asarray([total - 1], np.int32), "total": np.asarray(total, np.int32)}
        if self.tables:
            feeds |= dict(zip(("cos", "sin"), self.tables, strict=True))
        if bias is not None:
            feeds["bias"] = bias
        feeds |= dict(zip(("k_scale", "v_scale"), self.scales, strict=True))
        values = {name: graph_input(name, ir.DataType.from_numpy(a.dtype), a.ndim) for name, a in feeds.items()}
        order = ("q", "k", "v", "past_key", "past_value", "seqlens_k", "total", "cos", "sin", "", "bias", "")
        b = GraphBuilder()
        outputs = b.ops(
            "GroupQueryAttention",
            *(values.get(name) for name in (*order, "k_scale", "v_scale")),
            outputs=3,
            domain="com.microsoft",
            num_heads=q.shape[1],
            kv_num_heads=k.shape[1],
            do_rotary=int(self.tables is not None),
            rotary_interleaved=int(self.tables is not None),
            k_quant_type="PER_CHANNEL",
            v_quant_type="PER_CHANNEL",
            kv_cache_bit_width=self.bits,
        )
        for value, array in zip(outputs, (q, *self.caches), strict=True):
            typed(value, ir.DataType.from_numpy(array.dtype))
        model = model_of(b, list(values.values()), list(outputs))
        model.opset_imports["com.microsoft"] = 1
        y, *self.caches = run(model, feeds)
        return y


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize(("rotates", "biased", "width"), [(True, True, 16), (False, False, 24), (True, False, 128)])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_operator_stores_and_reads_what_the_definition_says(
    bits: int, rotates: bool, biased: bool, width: int, dtype: ir.DataType
) -> None:
    """Prefill, more behind it, single tokens; some values beyond the scales' reach; a scale of zero."""
    rng = np.random.default_rng(width)
    scales = [rng.uniform(1, 3, (2, 1, width)).astype(np.float32) / (2 ** (bits - 1) - 1) for _ in "kv"]
    scales[0][0, 0, 0] = 0
    operator, past = Operator(bits, width, scales, rotates, dtype), 0
    stored: list[list[np.ndarray]] = [[], []]
    for tokens in (19, 6, 1, 1):
        q, k, v = (rng.standard_normal((1, heads, tokens, width)).astype(NUMPY[dtype]) for heads in (4, 2, 2))
        bias = np.where(rng.random((1, 1, tokens, past + tokens)) < 0.3, -2, 0).astype(q.dtype) if biased else None
        y = operator(q, k, v, past, bias)
        if operator.tables:
            cos, sin = (table[past : past + tokens].astype(np.float32) for table in operator.tables)
            q, k = (rotated(x.astype(np.float32), cos, sin).astype(x.dtype) for x in (q, k))
        past += tokens
        for kept, x, scale in zip(stored, (k, v), scales, strict=True):
            kept.append(codes(x, scale, bits))
        for cache, kept in zip(operator.caches, stored, strict=True):
            np.testing.assert_array_equal(cache[:, :, :past], packed(np.concatenate(kept, axis=2), bits))
        read = [np.concatenate(kept, axis=2) * scale for kept, scale in zip(stored, scales, strict=True)]
        expected = attention(q, *read, past - tokens, 0 if bias is None else bias)
        # float32 sums; in float16 the results are rounded to 11 bits
        assert_close(y, expected, relative=1e-5 if dtype == FLOAT else 1e-3)


@pytest.mark.parametrize("bits", [8, 4])
def test_halves_go_to_even_and_ends_are_clipped(bits: int) -> None:
    top = 2 ** (bits - 1)
    steps = [0.5, 1.5, 2.5, -0.5, -1.5, top - 1.4, top + 5, -top - 5]
    values = np.asarray(steps, np.float32).reshape(1, 1, 1, 8) / 4
    operator = Operator(bits, 8, [np.full((1, 1, 8), 0.25, np.float32)] * 2, False, FLOAT)
    operator(values, values, values, 0, None)
    code = unpacked(operator.caches[0][0, 0, 0], bits)
    assert code.tolist() == [0, 2, 2, 0, -2, top - 1, top - 1, -top]
    np.testing.assert_array_equal(code, codes(values[0, 0, 0], np.full(8, 0.25, np.float32), bits))


def lowered(kv: ir.passes.InPlacePass, config: object = None, max_context: int = 64) -> ir.Model:
    model = reference(config or one_layer())  # type: ignore[arg-type]
    steps = [passes.LimitContext(max_context), passes.LayOutKVCache("static"), passes.MoveQKNormBeforeRotary()]
    for step in (*steps, kv, passes.FuseAttention(max_context)):
        step(model)
    return model


def test_casts_surround_attention_and_rotation_stays_outside() -> None:
    model = lowered(passes.CastKVCache(ir.DataType.FLOAT16))
    kinds = op_types(model)
    assert kinds.count("RotaryEmbedding") == 2 and kinds.count("com.microsoft.GroupQueryAttention") == 1
    (attention_node,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert [value.producer().op_type for value in attention_node.inputs[:3]] == ["Cast"] * 3  # type: ignore[union-attr]
    caches = [v for v in (*model.graph.inputs, *model.graph.outputs) if "." in str(v.name)]
    assert {value.dtype for value in caches} == {ir.DataType.FLOAT16}


@pytest.mark.parametrize(("bits", "dtype", "width"), [(8, ir.DataType.INT8, 16), (4, ir.DataType.UINT8, 8)])
def test_quantised_caches_are_declared_as_they_are_stored(bits: int, dtype: ir.DataType, width: int) -> None:
    model = lowered(passes.FuseExperts())
    scales = {
        f"past_key_values.0.{kind}": np.arange(1, 33, dtype=np.float32).reshape(2, 1, 16) for kind in ("key", "value")
    }
    before = set(model.graph.initializers)
    passes.QuantizeKVCache(bits)(model)
    passes.SetKVScales(scales)(model)
    caches = [v for v in (*model.graph.inputs, *model.graph.outputs) if "." in str(v.name)]
    assert len(caches) == 4
    assert all(v.dtype == dtype and v.shape is not None and v.shape[3] == width for v in caches)
    constants = [node for node in model.graph if str(node.name).endswith("_scale")]
    assert [node.attributes.get_tensor("value").numpy().ravel().tolist() for node in constants] == [[*range(1, 33)]] * 2
    assert set(model.graph.initializers) == before  # no weight moves


def test_a_second_run_changes_nothing() -> None:
    cast = passes.CastKVCache(ir.DataType.FLOAT16)
    assert not cast(lowered(cast)).modified
    quantization = passes.QuantizeKVCache(8)
    model = lowered(passes.FuseExperts())
    assert [quantization(model).modified, quantization(model).modified] == [True, False]


def test_heads_of_a_width_that_the_operator_does_not_take_are_refused() -> None:
    model = lowered(passes.FuseExperts(), one_layer(head_dim=12))
    with pytest.raises(InputError, match=r"int8.*no heads as wide as those of /layers\.0/attn/Attention"):
        passes.QuantizeKVCache(8)(model)


@pytest.mark.parametrize("head_dim", [16, 24])  # the operator takes rotated heads of 16 channels, not of 24
def test_attention_in_float16_is_close(head_dim: int) -> None:
    config = one_layer(head_dim=head_dim)
    before, model = reference(config), lowered(passes.CastKVCache(ir.DataType.FLOAT16), config)
    feeds = decoder_feeds(config, (20, 11), 20, 32)
    expected = run(before, feeds)[0]
    halves = {name: x.astype(np.float16) if x.dtype == np.float32 else x for name, x in feeds.items()}
    got = run(model, halves)[0]
    for row, length in enumerate((20, 11)):
        assert_close(got[row, :length], expected[row, :length], relative=5e-3)  # four roundings to 11 bits


# Engines


def engine(workshop: Workshop, variant: str, layout: str, kv_dtype: str) -> Engine:
    return workshop.engine(variant, layout, *(() if kv_dtype == "fp32" else (256, kv_dtype)))


def floats(built: Engine, name: str, stored: np.ndarray, scales: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a cache's entries mean, float32 [K, tokens, d]."""
    bits = KV_BITS.get(built.manifest.precision["kv_cache"])
    return stored.astype(np.float32) if bits is None else unpacked(stored, bits).astype(np.float32) * scales[name]


def names(session: Session) -> list[str]:
    layers = range(session.manifest.model.num_hidden_layers)
    return [f"past_key_values.{layer}.{kind}" for layer in layers for kind in ("key", "value")]


Kept = dict[str, list[np.ndarray]]


def feed(session: Session, rows: Sequence[np.ndarray], kept: Sequence[Kept]) -> np.ndarray:
    """Append to every row, and collect what the caches then hold of it."""
    logits = session.append([row.tolist() for row in rows])
    for row, ids in enumerate(rows):
        for name, stored in zip(names(session), session.tokens(row), strict=True):
            kept[row].setdefault(name, []).append(stored[:, stored.shape[1] - len(ids) :].copy())
    return logits


def check(built: Engine, workshop: Workshop, variant: str, ids: np.ndarray, logits: np.ndarray, kept: Kept) -> None:
    """Logits are the reference's where it reads the engine's own caches, and those are its own keys, rounded."""
    kv_dtype, scales = built.manifest.precision["kv_cache"], scales_of(built.directory)
    held = {name: floats(built, name, np.concatenate(parts, axis=1), scales) for name, parts in kept.items()}
    pairs = {
        layer: (held[f"past_key_values.{layer}.key"], held[f"past_key_values.{layer}.value"])
        for layer in range(built.config.num_hidden_layers)
    }
    model, torch = workshop.reference(variant).model, pytest.importorskip("torch")
    # layout chunked rotates by the position within the chunk: the same scores, other keys
    positions = np.arange(len(ids)) % (CHUNK if built.manifest.kv_layout == "chunked" else 1 << 30)
    with torch.inference_mode(), reading(pairs, half=kv_dtype == "fp16") as own:
        inputs = {"input_ids": torch.from_numpy(ids[None]), "position_ids": torch.from_numpy(positions[None])}
        # a mask, or positions that jump back would be taken for packed sequences
        mask = torch.ones_like(inputs["input_ids"])
        expected = model(**inputs, attention_mask=mask, use_cache=False).logits.numpy()[0]
    # Queries and results that float32 puts on either side of a float16 boundary differ by 2^-11.
    assert_close(logits, expected, relative=2e-3 if kv_dtype == "fp16" else 1e-4)
    for name, values in held.items():
        if kv_dtype == "fp16":
            # 2^-11 of its own, and what such differences in the layers below have made of it
            np.testing.assert_allclose(values, own[name], rtol=2**-10, atol=1e-3)
        else:
            step, top = scales[name], 2 ** (KV_BITS[kv_dtype] - 1)
            within = np.clip(own[name], -top * step, (top - 1) * step)
            assert (np.abs(values - within) <= 0.501 * step + 1e-5).all(), name


@variants
@layouts
@pytest.mark.parametrize("kv_dtype", ["fp16", *KV_BITS])
def test_prefill_and_decode_read_rounded_keys_and_values(
    workshop: Workshop, variant: str, layout: str, kv_dtype: str
) -> None:
    built, ids, kept = engine(workshop, variant, layout, kv_dtype), random_ids(TOKENS), Kept()
    session, logits = built.session(), []
    # only layout chunked forgets: there what a chunk held is looked at before the next one begins
    prefill = range(0, PREFILL, CHUNK if layout == "chunked" else PREFILL)
    pieces = [*prefill, *range(PREFILL, TOKENS + 1)]
    for start, stop in itertools.pairwise(pieces):
        logits.append(feed(session, [ids[start:stop]], [kept])[0])
    check(built, workshop, variant, ids, np.concatenate(logits), kept)


@quantized
def test_a_context_too_long_for_rotation_tables(workshop: Workshop, tmp_path: Path, kv_dtype: str) -> None:
    """The rotation then lies outside of the operator."""
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    edit_config(checkpoint, max_position_embeddings=10_485_760)
    (tmp_path / "ids").write_text(" ".join(map(str, random_ids(200))))
    options = BuildOptions(max_context=10_485_760, kv_dtype=kv_dtype, kv_calibrate=tmp_path / "ids")
    build(checkpoint, tmp_path / "e", options)
    built, ids, kept = runtimes.load(tmp_path / "e", threads=1), random_ids(60), Kept()
    session = built.session(capacity=60)
    logits = [
        feed(session, [ids[start:stop]], [kept])[0] for start, stop in ((0, 40), *itertools.pairwise(range(40, 61)))
    ]
    check(built, workshop, "scout", ids, np.concatenate(logits), kept)


@quantized
@layouts
def test_rows_of_a_batch_at_different_lengths(workshop: Workshop, layout: str, kv_dtype: str) -> None:
    built, ids = engine(workshop, "scout", layout, kv_dtype), random_ids((3, 40), seed=2)
    session, kept, at = built.session(batch=3), [Kept(), Kept(), Kept()], np.zeros(3, dtype=int)
    logits: list[list[np.ndarray]] = [[], [], []]
    for counts in [(11, 5, 16), (5, 0, 9), *[(1, 1, 1)] * 12]:
        fed = [ids[row, at[row] : at[row] + count] for row, count in enumerate(counts)]
        got = feed(session, fed, kept)
        for row, count in enumerate(counts):
            logits[row].append(got[row, :count])
        at += counts
    for row, end in enumerate(at):
        check(built, workshop, "scout", ids[row, :end], np.concatenate(logits[row]), kept[row])


@layouts
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_buffers_take_the_bytes_that_the_dtype_says(workshop: Workshop, layout: str, kv_dtype: str) -> None:
    built, capacity = engine(workshop, "scout", layout, kv_dtype), 60
    session = built.session(batch=2, capacity=capacity)
    session.append(random_ids((2, capacity)))
    assert session.kv_bytes == kv_bytes(built.config, layout, kv_dtype, capacity, batch=2)


@quantized
@layouts
def test_sessions_of_codes_can_go_back_fork_and_be_saved(
    workshop: Workshop, tmp_path: Path, layout: str, kv_dtype: str
) -> None:
    built, ids = engine(workshop, "scout", layout, kv_dtype), random_ids(60, seed=5)
    session = built.session()
    session.append(ids[:41])
    expected = session.append(ids[41:44])
    session.rewind(3)
    fork = session.fork([0, 0])
    session.save(tmp_path / "s")
    loaded = built.load_session(tmp_path / "s")
    for other in (session, loaded):
        np.testing.assert_array_equal(other.append(ids[41:44]), expected)
    assert_close(fork.append([ids[41:44], ids[41:44]])[1], expected[0], relative=1e-5)


@pytest.mark.parametrize("kv_dtype", ["fp32", "int8", "int4"])
def test_with_float16_weights(workshop: Workshop, tmp_path: Path, kv_dtype: str) -> None:
    """The same engine but for its cache: what it adds to the distance from the reference is that of its cache."""
    options = BuildOptions(dtype="fp16", max_context=128, kv_dtype=kv_dtype)
    build(workshop.checkpoint("scout"), tmp_path / "e", options)
    ids = random_ids(60)
    got = runtimes.load(tmp_path / "e").session().append(ids)[0]
    expected = engine(workshop, "scout", "static", kv_dtype).session().append(ids)[0]
    # As for any float16 engine: 11 bits, and a position whose router is nearly tied may take another expert.
    limit = {"fp32": 1e-2, "int8": 2e-2, "int4": 1e-1}[kv_dtype]
    assert np.median(np.abs(got - expected).max(axis=1)) <= limit * np.abs(expected).max()
