"""Every pass: what it rewrites, what it leaves alone, and that the numbers stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from l4export import passes
from l4export.graph.builder import GraphBuilder
from l4export.graph.dialect import DOMAIN, is_dialect
from l4export.model.config import ModelConfig
from l4export.weights.recipes import Cast, Recipe, Source, Transpose
from tiny_graphs import (
    UnreadableData,
    decoder_feeds,
    graph_input,
    loaded,
    model_of,
    one_layer,
    op_types,
    reference,
    run,
    source,
    tiny_config,
    typed,
)

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
FUSED_ATTENTION = "com.microsoft.GroupQueryAttention"
CONTEXT = 64

# The same float32 sums in another order: a few times 6e-8 of values of order one to ten.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(model: ir.Model, op_type: str) -> ir.Node:
    """The only node of its type."""
    (found,) = (node for node in model.graph if node.op_type == op_type)
    return found


def initializer(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def interface(model: ir.Model) -> list[str | None]:
    return [value.name for value in (*model.graph.inputs, *model.graph.outputs)]


PASSES: dict[str, Callable[[], ir.passes.InPlacePass]] = {
    "lay_out_kv_cache": lambda: passes.LayOutKVCache("chunked"),
    "fuse_experts": passes.FuseExperts,
    "move_qk_norm_before_rotary": passes.MoveQKNormBeforeRotary,
    "fuse_attention": lambda: passes.FuseAttention(CONTEXT),
    "keep_weights_untransposed": passes.KeepWeightsUntransposed,
    "inline_dialect": passes.InlineDialect,
    "remove_unused": passes.RemoveUnused,
}

STANDARD: dict[str, Callable[[], ir.passes.InPlacePass]] = {
    "lower_experts": passes.LowerExperts,
    "lower_attention": passes.LowerAttention,
    "leave_checks_to_runtime": passes.LeaveChecksToRuntime,
    "fix_cache_capacity": lambda: passes.FixCacheCapacity(CONTEXT),
    "require_inputs": passes.RequireInputs,
    "allow_decomposed_attention": passes.AllowDecomposedAttention,
}
EVERY = [*PASSES, *STANDARD]


def up_to(name: str, model: ir.Model) -> list[ir.passes.PassResult]:
    """Run the passes in order, `name` last and twice; returns the results of those two runs."""
    order = PASSES if name in PASSES else {"lay_out_kv_cache": PASSES["lay_out_kv_cache"], **STANDARD}
    for other, make in order.items():
        if other == name:
            return [make()(model), make()(model)]
        make()(model)
    raise KeyError(name)


@pytest.mark.parametrize("name", EVERY)
def test_a_second_run_changes_nothing(name: str) -> None:
    first, second = up_to(name, reference(tiny_config()))
    assert first.modified and not second.modified


@pytest.mark.parametrize("name", EVERY)
def test_inputs_and_outputs_keep_their_names(name: str) -> None:
    model = reference(tiny_config())
    names = interface(model)
    up_to(name, model)
    assert interface(model) == names


@pytest.mark.parametrize("name", EVERY)
def test_node_names_stay_unique(name: str) -> None:
    model = reference(tiny_config())
    up_to(name, model)
    names = [node.name for node in model.graph]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", EVERY)
def test_no_pass_reads_a_weight(name: str) -> None:
    from l4export.model.decoder import build_decoder

    model = build_decoder(tiny_config(), lambda _, shape: Source(UnreadableData(shape, np.float32)), FLOAT)
    assert up_to(name, model)[0].modified


# LayOutKVCache


def slots(model: ir.Model) -> set[str]:
    caches = [
        v for v in (*model.graph.inputs, *model.graph.outputs) if ".key" in str(v.name) or ".value" in str(v.name)
    ]
    return {str(value.shape[2]) for value in caches if value.shape is not None}


def test_static_caches_are_declared_with_one_capacity() -> None:
    model = reference(one_layer())
    passes.LayOutKVCache("static")(model)
    assert slots(model) == {"capacity"}


def test_concat_is_the_layout_of_the_reference() -> None:
    model = reference(one_layer())
    assert not passes.LayOutKVCache("concat")(model).modified
    assert slots(model) == {"past", "present"}


def test_concat_undoes_static() -> None:
    model = reference(one_layer())
    passes.LayOutKVCache("static")(model)
    assert passes.LayOutKVCache("concat")(model).modified and slots(model) == {"past", "present"}


def test_only_the_slots_of_caches_are_renamed() -> None:
    model, untouched = reference(one_layer()), reference(one_layer())
    passes.LayOutKVCache("static")(model)
    for ours, theirs in zip(model.graph.inputs, untouched.graph.inputs, strict=True):
        assert ours.shape is not None and theirs.shape is not None
        assert [dim for i, dim in enumerate(ours.shape) if "past" not in str(ours.name) or i != 2] == [
            dim for i, dim in enumerate(theirs.shape) if "past" not in str(theirs.name) or i != 2
        ]


def test_a_cache_in_place_gives_the_logits_of_one_that_grows() -> None:
    config = one_layer()
    model = reference(config)
    grown = run(model, decoder_feeds(config, [20, 13], 20))
    passes.LayOutKVCache("static")(model)
    still = run(model, decoder_feeds(config, [20, 13], 20, past=CONTEXT))
    assert still[1].shape[2] == CONTEXT and grown[1].shape[2] == 20
    np.testing.assert_allclose(still[0], grown[0], **CLOSE)
    np.testing.assert_array_equal(still[1][:, :, :20], grown[1])


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="'paged' is not one of concat, static, chunked"):
        passes.LayOutKVCache("paged")


def chunked(model: ir.Model) -> ir.Model:
    passes.LayOutKVCache("chunked")(model)
    return model


def test_chunked_layers_get_caches_of_one_chunk() -> None:
    model = chunked(reference(tiny_config()))  # three chunked layers and a full one
    caches = {
        str(v.name): str(v.shape[2]) for v in (*model.graph.inputs, *model.graph.outputs) if str(v.name).endswith("key")
    }
    assert caches == {
        f"{kind}.{layer}.key": "capacity" if layer == 3 else "chunk_capacity"
        for kind in ("past_key_values", "present")
        for layer in range(4)
    }


def test_a_layout_in_chunks_runs_twice_and_is_not_undone() -> None:
    model = chunked(reference(tiny_config()))
    assert not passes.LayOutKVCache("chunked")(model).modified
    with pytest.raises(ir.passes.PreconditionError, match="lay them out once"):
        passes.LayOutKVCache("static")(model)


def test_without_chunked_layers_the_layout_in_chunks_is_static() -> None:
    config = tiny_config("guard")
    model, static = chunked(reference(config)), reference(config)
    passes.LayOutKVCache("static")(static)
    assert op_types(model) == op_types(static) and slots(model) == {"capacity"}


DENSE = tiny_config("mobile", rope_layers=(True, True, False, False), chunked_layers=(True, False, True, False))


@pytest.mark.parametrize("fused", [False, True], ids=["dialect", "fused"])
@pytest.mark.parametrize(
    ("config", "dtype", "start"),
    [
        pytest.param(tiny_config(), FLOAT, [0], id="from 0"),
        pytest.param(tiny_config(), FLOAT, [9_999_900], id="from afar"),
        pytest.param(tiny_config(), FLOAT, [9_999_900, 7], id="from two positions"),
        pytest.param(DENSE, FLOAT, [9_999_900, 7], id="rotated and chunked are different layers"),
        pytest.param(DENSE, ir.DataType.FLOAT16, [9_999_900, 7], id="float16"),
    ],
)
def test_caches_of_one_chunk_compute_the_same(
    config: ModelConfig, dtype: ir.DataType, start: list[int], fused: bool
) -> None:
    """One token a call through two boundaries, beside the reference graph with caches of the whole sequence."""
    model = chunked(reference(config, dtype))
    if fused:
        fuse(model, 10_485_760)
        passes.InlineDialect()(model)
    ours, whole = loaded(model), loaded(reference(config, dtype))
    caches, whole_caches = ([np.zeros((2, 2, 40, 16), dtype.numpy())] * 8 for _ in range(2))
    for length in range(1, 38):
        feeds, whole_feeds = (
            decoder_feeds(config, [length] * 2, 1, past=past, seed=length) | {"cache_start": np.asarray(start)}
            for past in (caches, whole_caches)
        )
        logits, *caches = ours.run(None, feeds)
        expected, *whole_caches = whole.run(None, whole_feeds)
        # float16: eleven bits, through four layers, on logits of order one
        np.testing.assert_allclose(logits, expected, **(CLOSE if dtype == FLOAT else {"rtol": 0.05, "atol": 0.05}))


@pytest.mark.parametrize("fused", [False, True], ids=["dialect", "fused"])
def test_a_call_over_the_end_of_a_chunk_is_refused(fused: bool) -> None:
    config = one_layer()
    model = chunked(reference(config))
    if fused:
        fuse(model)
    run(model, decoder_feeds(config, [16], 16))
    for rows, tokens in (([17], 17), ([18], 4), ([18, 18], 4)):
        with pytest.raises(Exception, match="new_tokens_must_stay_in_one_chunk"):
            run(model, decoder_feeds(config, rows, tokens, past=16))


def test_a_graph_in_chunks_has_no_mask_and_tables_of_one_chunk() -> None:
    model = chunked(reference(tiny_config()))
    fuse(model, 1_000_000)
    passes.InlineDialect()(model)
    passes.RemoveUnused()(model)
    for layer, fused in enumerate(node for node in model.graph if node.op_type == "GroupQueryAttention"):
        assert len(fused.inputs) <= 10 or fused.inputs[10] is None
        if layer < 3:
            assert fused.inputs[7].shape == (16, 8)
    assert "RotaryEmbedding" not in op_types(model)


def test_rotated_layers_that_see_everything_keep_their_own_angles() -> None:
    model = chunked(reference(tiny_config(chunked_layers=(True, False, True, False))))
    fuse(model)
    rows = [n.inputs[7].shape[0] for n in model.graph if n.op_type == "GroupQueryAttention" and n.inputs[7] is not None]
    assert rows == [16, CONTEXT, 16]


# FuseExperts


def moe_model(k: int, constant_weights: bool = True) -> ir.Model:
    """x [B, S, 8] and router logits [B, S, 4] into 4 experts of width 6."""
    b = GraphBuilder()
    x, logits = graph_input("x", FLOAT, 3), graph_input("router_logits", FLOAT, 3)
    inputs = [x, logits]
    if constant_weights:
        gate_up = b.initializer(source(random(4, 8, 12, seed=2)), "gate_up")
        down = b.initializer(source(random(4, 6, 8, seed=3)), "down")
    else:
        gate_up, down = graph_input("gate_up", FLOAT, 3), graph_input("down", FLOAT, 3)
        inputs += [gate_up, down]
    y = b.op("MoE", x, logits, gate_up, down, domain=DOMAIN, name="experts", k=k)
    return model_of(b, inputs, [typed(y, FLOAT)])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_fused_experts_compute_the_same(k: int) -> None:
    model = moe_model(k)
    feeds = {"x": random(2, 5, 8), "router_logits": 3 * random(2, 5, 4, seed=1)}
    (before,) = run(model, feeds)
    passes.FuseExperts()(model)
    (after,) = run(model, feeds)
    assert np.abs(before).max() > 1
    # values of order 50 from sums that are taken in another order
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("k", [1, 2])
def test_one_fused_operator_takes_the_place_of_the_experts(k: int) -> None:
    model = moe_model(k)
    passes.FuseExperts()(model)
    assert op_types(model).count("com.microsoft.MoE") == 1
    assert not any(is_dialect(node, "MoE") for node in model.graph)
    assert model.graph.outputs[0].name == "/experts"


def test_fused_experts_each_see_one_row() -> None:
    model = moe_model(2)
    passes.FuseExperts()(model)
    assert node(model, "MoE").attributes.get_int("k") == 1
    assert node(model, "MoE").attributes.get_int("normalize_routing_weights") == 1


def test_gate_and_up_rows_take_turns() -> None:
    model = moe_model(1)
    passes.FuseExperts()(model)
    gate_up, fc1 = random(4, 8, 12, seed=2), initializer(model, "gate_up.fc1")
    assert fc1.shape == (4, 12, 8)
    np.testing.assert_array_equal(fc1[:, 0::2], gate_up[:, :, :6].transpose(0, 2, 1))
    np.testing.assert_array_equal(fc1[:, 1::2], gate_up[:, :, 6:].transpose(0, 2, 1))


def test_down_is_transposed() -> None:
    model = moe_model(1)
    passes.FuseExperts()(model)
    np.testing.assert_array_equal(initializer(model, "down.fc2"), random(4, 6, 8, seed=3).transpose(0, 2, 1))


def test_the_weights_that_were_replaced_are_gone() -> None:
    model = moe_model(1)
    passes.FuseExperts()(model)
    assert not {"gate_up", "down"} & set(model.graph.initializers)


def test_expert_weights_must_be_initializers() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="expert weights must be initializers"):
        passes.FuseExperts()(moe_model(1, constant_weights=False))


def test_a_model_without_experts_is_left_alone() -> None:
    model = reference(one_layer("guard"))
    assert not passes.FuseExperts()(model).modified and "com.microsoft" not in model.opset_imports


# MoveQKNormBeforeRotary


def norm_model(*, rotate: bool = True, second_reader: bool = False) -> ir.Model:
    """x [B, S, 2*8] -> rotation -> norm."""
    b = GraphBuilder()
    x, cos, sin = (graph_input(name, FLOAT, 3) for name in ("x", "cos", "sin"))
    rotated = b.op("RotaryEmbedding", x, cos, sin, name="q_rotary", interleaved=1, num_heads=2) if rotate else x
    normed = b.op("QKNorm", rotated, domain=DOMAIN, name="q_norm", num_heads=2, head_dim=8, epsilon=1e-5)
    outputs = [typed(b.op("Identity", normed, name="y"), FLOAT)]
    if second_reader:
        outputs.append(typed(b.op("Identity", rotated, name="z"), FLOAT))
    return model_of(b, [x, cos, sin], outputs)


def test_the_norm_moves_before_the_rotation() -> None:
    model = norm_model()
    assert passes.MoveQKNormBeforeRotary()(model).modified
    assert op_types(model) == ["l4.QKNorm", "RotaryEmbedding", "Identity"]
    assert [node.name for node in model.graph] == ["/q_norm", "/q_rotary", "/y"]


def test_norm_and_rotation_commute() -> None:
    model = norm_model()
    angles = 10 * random(2, 5, 4, seed=1)
    feeds = {"x": 3 * random(2, 5, 16), "cos": np.cos(angles), "sin": np.sin(angles)}
    before = run(model, feeds)[0]
    passes.MoveQKNormBeforeRotary()(model)
    np.testing.assert_allclose(run(model, feeds)[0], before, **CLOSE)


def test_a_rotation_that_something_else_reads_stays() -> None:
    model = norm_model(second_reader=True)
    assert not passes.MoveQKNormBeforeRotary()(model).modified
    assert op_types(model)[:2] == ["RotaryEmbedding", "l4.QKNorm"]


def test_a_norm_without_a_rotation_stays() -> None:
    assert not passes.MoveQKNormBeforeRotary()(norm_model(rotate=False)).modified


# FuseAttention


def fuse(model: ir.Model, context: int = CONTEXT) -> None:
    passes.MoveQKNormBeforeRotary()(model)
    passes.FuseAttention(context)(model)


ATTENTION_CONFIGS = {
    "rotated, chunked, normed": one_layer("scout"),
    "rotated, chunked": one_layer("maverick"),
    "rotated, full": one_layer("guard", chunked=False),
    "not rotated, full, temperature": one_layer("scout", rope=False, chunked=False),
    "not rotated, chunked": one_layer("scout", rope=False),
    "two key heads for six": one_layer("scout", num_attention_heads=6),
}


@pytest.mark.parametrize("slots", [0, CONTEXT])
@pytest.mark.parametrize("config", ATTENTION_CONFIGS.values(), ids=ATTENTION_CONFIGS.keys())
def test_fused_attention_computes_the_same(config: ModelConfig, slots: int) -> None:
    """On a prefill of two rows past two chunk boundaries, then on decoding across a third."""
    model, fused = reference(config), reference(config)
    fuse(fused)
    lengths = [47, 36]
    feeds = decoder_feeds(config, lengths, 47, past=slots)
    before, after = run(model, feeds), run(fused, feeds)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(after[0][row, :length], before[0][row, :length], **CLOSE)
    for _ in range(3):
        lengths = [length + 1 for length in lengths]
        step, fused_step = (decoder_feeds(config, lengths, 1, past=result[1:]) for result in (before, after))
        before, after = run(model, step), run(fused, fused_step)
        np.testing.assert_allclose(after[0], before[0], **CLOSE)


def test_one_fused_operator_takes_the_place_of_rotation_and_attention() -> None:
    model = reference(one_layer())
    fuse(model)
    passes.RemoveUnused()(model)
    types = op_types(model)
    assert types.count(FUSED_ATTENTION) == 1
    assert not {"RotaryEmbedding", "l4.Attention", "l4.RotaryAngles"} & set(types)


def test_a_layer_without_rotation_has_no_tables() -> None:
    model = reference(one_layer(rope=False, chunked=False))
    fuse(model)
    fused = node(model, "GroupQueryAttention")
    assert fused.attributes.get_int("do_rotary") == 0 and fused.inputs[7] is fused.inputs[8] is None


def test_rotation_tables_take_the_product_in_float32() -> None:
    config = one_layer()
    model = reference(config)
    fuse(model)
    cos, sin = (value.const_value.numpy() for value in node(model, "GroupQueryAttention").inputs[7:9])
    angles = np.arange(CONTEXT, dtype=np.float32)[:, None] * config.inv_freq().astype(np.float32)
    np.testing.assert_array_equal(cos, np.cos(angles.astype(np.float64)).astype(np.float32))
    np.testing.assert_array_equal(sin, np.sin(angles.astype(np.float64)).astype(np.float32))


def test_tables_have_the_caches_dtype() -> None:
    model = reference(one_layer(), ir.DataType.FLOAT16)
    fuse(model)
    assert node(model, "GroupQueryAttention").inputs[7].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize(
    ("rope", "chunked", "context", "biased"),
    [
        pytest.param(True, True, 17, True, id="two chunks"),
        pytest.param(True, True, 16, False, id="one chunk, rotated"),
        pytest.param(False, True, 16, False, id="one chunk, not rotated"),
        pytest.param(False, True, 17, True, id="two chunks, not rotated"),
        pytest.param(True, False, 64, False, id="rotated, full"),
        pytest.param(False, False, 64, False, id="not rotated, full"),
    ],
)
def test_only_chunked_layers_have_a_bias(rope: bool, chunked: bool, context: int, biased: bool) -> None:
    model = reference(one_layer(rope=rope, chunked=chunked))
    fuse(model, context)
    fused = node(model, "GroupQueryAttention")
    assert (len(fused.inputs) > 10 and fused.inputs[10] is not None) == biased


def test_layers_share_lengths_tables_and_bias() -> None:
    model = reference(tiny_config())
    fuse(model)
    fused = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert len(fused) == 4
    for shared in (5, 6):
        assert len({node.inputs[shared] for node in fused}) == 1
    for shared in (7, 8, 10):
        assert len({node.inputs[shared] for node in fused[:3]}) == 1


def test_a_sequence_longer_than_the_table_is_refused() -> None:
    config = one_layer()
    model = reference(config)
    fuse(model, 20)
    run(model, decoder_feeds(config, [20], 20))
    with pytest.raises(Exception, match="cos_cache"):
        run(model, decoder_feeds(config, [21], 21))


@pytest.mark.parametrize(
    ("rope", "head_dim", "fits"),
    [(True, 32, True), (True, 8, False), (True, 24, False), (False, 8, True), (False, 12, False)],
)
def test_only_head_widths_that_the_operator_takes_are_fused(rope: bool, head_dim: int, fits: bool) -> None:
    config = one_layer(rope=rope, head_dim=head_dim)
    model = reference(config)
    feeds = decoder_feeds(config, [20, 11], 20)
    before = run(model, feeds)
    fuse(model)
    assert [FUSED_ATTENTION in op_types(model), "l4.Attention" in op_types(model)] == [fits, not fits]
    for row, length in enumerate((20, 11)):
        np.testing.assert_allclose(run(model, feeds)[0][row, :length], before[0][row, :length], **CLOSE)


Edit = Callable[[dict[str, ir.Value], GraphBuilder], None]


def attention_model(edit: Edit | None = None, *, interleaved: int = 1) -> ir.Model:
    """One attention over rotated q and k; `edit` may replace any value of `v` before the attention reads it."""
    b = GraphBuilder()
    ids, mask = graph_input("input_ids", INT64, 2), graph_input("attention_mask", INT64, 2)
    caches = [
        ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(["b", 1, "p", 16])) for name in ("pk", "pv")
    ]
    x = graph_input("x", FLOAT, 3)
    start = graph_input("cache_start", INT64, 1)
    lengths = b.ops("SequenceLengths", mask, ids, start, start, outputs=3, domain=DOMAIN, name="lengths")
    v: dict[str, ir.Value] = {"x": x, "past_length": lengths[0], "total_length": lengths[2], "ids": ids}
    v["slots"] = b.op("Slots", lengths[0], ids, domain=DOMAIN)
    v["inv_freq"] = b.initializer(ir.tensor(np.geomspace(1, 1e-3, 8, dtype=np.float32)), "inv_freq")
    v["cos"], v["sin"] = b.ops("RotaryAngles", v["slots"], v["inv_freq"], outputs=2, domain=DOMAIN)
    for name in ("q", "k"):
        v[name] = b.op("RotaryEmbedding", x, v["cos"], v["sin"], interleaved=interleaved, num_heads=1)
    if edit:
        edit(v, b)
    y = b.ops(
        "Attention",
        *(v["q"], v["k"], x, *caches, v["slots"], v["past_length"], v["total_length"], start),
        outputs=3,
        domain=DOMAIN,
        name="attn",
        num_heads=1,
        kv_num_heads=1,
        chunk_size=16,
    )
    extra = [value for value in v.values() if value.producer() is None and value.const_value is None]
    inputs = list(dict.fromkeys([ids, mask, start, x, *caches, *extra]))
    return model_of(b, inputs, [typed(value, FLOAT) for value in y])


def rotated_again(v: dict[str, ir.Value], b: GraphBuilder, **changes: ir.Value) -> ir.Value:
    angles = {name: changes.get(name, v[name]) for name in ("cos", "sin")}
    return b.op("RotaryEmbedding", v["x"], angles["cos"], angles["sin"], interleaved=1, num_heads=1)


def normed(v: dict[str, ir.Value], b: GraphBuilder, name: str) -> None:
    v[name] = b.op("QKNorm", v[name], domain=DOMAIN, num_heads=1, head_dim=16, epsilon=1e-5)


def only_q_rotated(v: dict[str, ir.Value], _: GraphBuilder) -> None:
    v["k"] = v["x"]


def only_k_rotated(v: dict[str, ir.Value], _: GraphBuilder) -> None:
    v["q"] = v["x"]


def k_by_other_angles(v: dict[str, ir.Value], b: GraphBuilder) -> None:
    v["k"] = rotated_again(v, b, cos=v["sin"], sin=v["cos"])


def angles_from_outside(v: dict[str, ir.Value], b: GraphBuilder) -> None:
    v["outside"] = graph_input("outside", FLOAT, 3)
    v["q"], v["k"] = (rotated_again(v, b, cos=v["outside"], sin=v["outside"]) for _ in "qk")


def angles_of_other_slots(v: dict[str, ir.Value], b: GraphBuilder) -> None:
    v["slots"] = b.op("Slots", v["past_length"], v["ids"], domain=DOMAIN)


def cos_and_sin_of_different_angles(v: dict[str, ir.Value], b: GraphBuilder) -> None:
    _, sin = b.ops("RotaryAngles", v["slots"], v["inv_freq"], outputs=2, domain=DOMAIN)
    v["q"], v["k"] = (rotated_again(v, b, sin=sin) for _ in "qk")


def computed_frequencies(v: dict[str, ir.Value], b: GraphBuilder) -> None:
    inv_freq = b.op("Identity", v["inv_freq"])
    cos, sin = b.ops("RotaryAngles", v["slots"], inv_freq, outputs=2, domain=DOMAIN)
    v["q"], v["k"] = (rotated_again(v, b, cos=cos, sin=sin) for _ in "qk")


def lengths_from_outside(v: dict[str, ir.Value], _: GraphBuilder) -> None:
    v["past_length"] = graph_input("past", INT64, 1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(lambda v, b: normed(v, b, "q"), "run MoveQKNormBeforeRotary first", id="norm after q's rotation"),
        pytest.param(lambda v, b: normed(v, b, "k"), "run MoveQKNormBeforeRotary first", id="norm after k's rotation"),
        (only_q_rotated, "rotated by the same angles"),
        (only_k_rotated, "rotated by the same angles"),
        (k_by_other_angles, "rotated by the same angles"),
        (angles_from_outside, "must be l4.RotaryAngles of the layer's slots"),
        (angles_of_other_slots, "must be l4.RotaryAngles of the layer's slots"),
        (cos_and_sin_of_different_angles, "must be l4.RotaryAngles of the layer's slots"),
        (computed_frequencies, "inv_freq must be an initializer"),
        (lengths_from_outside, "past_length must come from l4.SequenceLengths"),
    ],
)
def test_attention_that_cannot_be_fused_is_refused(edit: Edit, message: str) -> None:
    model = attention_model(edit)
    nodes = op_types(model)
    with pytest.raises(ir.passes.PreconditionError, match=message):
        passes.FuseAttention(CONTEXT)(model)
    assert op_types(model) == nodes


def test_a_rotation_of_halves_is_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="adjacent pairs"):
        passes.FuseAttention(CONTEXT)(attention_model(interleaved=0))


def test_the_graph_of_those_refusals_can_be_fused_otherwise() -> None:
    assert passes.FuseAttention(CONTEXT)(attention_model()).modified


def test_cos_and_sin_exchanged_are_not_taken_for_angles() -> None:
    """cos and sin come from one RotaryAngles, but in the wrong order: not a rotation by its angles."""

    def exchanged(v: dict[str, ir.Value], b: GraphBuilder) -> None:
        v["q"], v["k"] = (rotated_again(v, b, cos=v["sin"], sin=v["cos"]) for _ in "qk")

    with pytest.raises(ir.passes.PreconditionError, match=r"must be l4\.RotaryAngles"):
        passes.FuseAttention(CONTEXT)(attention_model(exchanged))


# KeepWeightsUntransposed


def matmul_model(weight: Recipe, readers: int = 1) -> ir.Model:
    """x [B, S, 8] times one weight, `readers` times."""
    b = GraphBuilder()
    x = graph_input("x", FLOAT, 3)
    w = b.initializer(weight, "proj.weight")
    outputs = [typed(b.op("MatMul", x, w, name=f"proj{i}/MatMul"), FLOAT) for i in range(readers)]
    return model_of(b, [x], outputs)


STORED = random(6, 8, seed=1)


def test_a_weight_is_read_as_it_is_stored() -> None:
    model = matmul_model(Transpose(source(STORED), (1, 0)))
    assert passes.KeepWeightsUntransposed()(model).modified
    assert op_types(model) == ["com.microsoft.FusedMatMul"]
    assert node(model, "FusedMatMul").attributes.get_int("transB") == 1
    np.testing.assert_array_equal(initializer(model, "proj.weight"), STORED)


def test_a_cast_of_a_transpose_is_looked_through() -> None:
    model = matmul_model(Cast(Transpose(source(STORED.astype(np.float16)), (1, 0)), FLOAT))
    passes.KeepWeightsUntransposed()(model)
    np.testing.assert_array_equal(initializer(model, "proj.weight"), STORED.astype(np.float16).astype(np.float32))


def test_node_and_output_keep_their_names() -> None:
    model = matmul_model(Transpose(source(STORED), (1, 0)))
    passes.KeepWeightsUntransposed()(model)
    assert (node(model, "FusedMatMul").name, model.graph.outputs[0].name) == ("/proj0/MatMul",) * 2


def test_a_product_with_a_stored_weight_is_the_same() -> None:
    model = matmul_model(Transpose(source(STORED), (1, 0)))
    x = random(2, 3, 8)
    passes.KeepWeightsUntransposed()(model)
    np.testing.assert_allclose(run(model, {"x": x})[0], x @ STORED.T, **CLOSE)


def test_a_weight_with_two_readers_is_left_alone() -> None:
    model = matmul_model(Transpose(source(STORED), (1, 0)), readers=2)
    assert not passes.KeepWeightsUntransposed()(model).modified
    np.testing.assert_array_equal(initializer(model, "proj.weight"), STORED.T)


def test_a_weight_that_is_not_transposed_is_left_alone() -> None:
    model = matmul_model(source(STORED.T.copy()))
    assert not passes.KeepWeightsUntransposed()(model).modified and "com.microsoft" not in model.opset_imports


def transposed_model(perm: list[int], readers: int = 1) -> ir.Model:
    """x [B, S, 8] times a `Transpose` of an [8, 8] initializer."""
    b = GraphBuilder()
    x = graph_input("x", FLOAT, 3)
    embedding = b.initializer(source(random(8, 8, seed=1)), "embedding")
    head = b.op("Transpose", embedding, perm=perm, name="head/Transpose")
    outputs = [typed(b.op("MatMul", x, head, name=f"head{i}/MatMul"), FLOAT) for i in range(readers)]
    return model_of(b, [x], outputs)


def test_a_transposed_initializer_is_read_directly() -> None:
    model = transposed_model([1, 0])
    passes.KeepWeightsUntransposed()(model)
    assert op_types(model) == ["com.microsoft.FusedMatMul"]


def test_a_transpose_with_two_products_goes_when_both_are_rewritten() -> None:
    model = transposed_model([1, 0], readers=2)
    passes.KeepWeightsUntransposed()(model)
    assert op_types(model) == ["com.microsoft.FusedMatMul"] * 2


@pytest.mark.parametrize("perm", [[1, 0], [0, 1]])
def test_the_product_with_a_transpose_stays_the_same(perm: list[int]) -> None:
    model, x = transposed_model(perm), random(2, 3, 8)
    before = run(model, {"x": x})[0]
    passes.KeepWeightsUntransposed()(model)
    np.testing.assert_allclose(run(model, {"x": x})[0], before, **CLOSE)


def test_a_tied_head_keeps_one_copy_of_the_embedding() -> None:
    config = one_layer("mobile")
    model = reference(config)
    feeds = decoder_feeds(config, [20], 20)
    before = run(model, feeds)[0]
    passes.KeepWeightsUntransposed()(model)
    tied = [name for name, v in model.graph.initializers.items() if tuple(v.shape) == (256, 64)]
    assert tied == ["model.embed_tokens.weight"] and "Transpose" not in op_types(model)
    np.testing.assert_allclose(run(model, feeds)[0], before, **CLOSE)


# InlineDialect


@pytest.mark.parametrize("variant", ["scout", "maverick", "guard", "mobile"])
def test_an_inlined_model_computes_the_same(variant: str) -> None:
    config = one_layer(variant)
    model = reference(config)
    feeds = decoder_feeds(config, [20, 9], 20)
    before = run(model, feeds)
    passes.InlineDialect()(model)
    for ours, theirs in zip(run(model, feeds), before, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_no_trace_of_the_dialect_is_left() -> None:
    model = reference(tiny_config())
    passes.InlineDialect()(model)
    assert not any(is_dialect(node) for node in model.graph)
    assert DOMAIN not in model.opset_imports and not model.functions


def test_bodies_are_named_below_their_call() -> None:
    model = reference(one_layer())
    passes.InlineDialect()(model)
    names = {node.name for node in model.graph}
    assert "/layers.0/attn/q_norm/RMSNormalization" in names
    assert any(name.startswith("/layers.0/attn/Attention/") for name in names if name)
    assert not any(name.startswith("node") or not name for name in names)


def test_value_names_stay_unique() -> None:
    model = reference(tiny_config())
    passes.InlineDialect()(model)
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(names) == len(set(names))


def test_the_refusal_of_a_mask_keeps_its_name() -> None:
    config = one_layer()
    model = reference(config)
    passes.InlineDialect()(model)
    feeds = decoder_feeds(config, [4], 4) | {"attention_mask": np.asarray([[0, 1, 1, 1]])}
    with pytest.raises(Exception, match="rows_must_be_padded_on_the_right"):
        run(model, feeds)


def test_results_of_calls_keep_their_names() -> None:
    model = reference(one_layer())
    calls = {v.name for node in model.graph if is_dialect(node) for v in node.outputs}
    passes.InlineDialect()(model)
    assert calls <= {value.name for node in model.graph for value in node.outputs}


# RemoveUnused


def cluttered_model() -> ir.Model:
    """exp(x) computed twice, a node and a large weight nobody reads, and an optional input."""
    b = GraphBuilder()
    x = graph_input("x", FLOAT, 2)
    keep = b.initializer(ir.tensor(np.asarray(0, np.int64)), "logits_to_keep")
    b.initializer(Source(UnreadableData((10**6, 10**6), np.float32)), "unread.weight")
    once, twice = b.op("Exp", x), b.op("Exp", x)
    b.op("Sin", x)
    y = typed(b.op("Add", once, twice), FLOAT)
    model = model_of(b, [x, keep], [y])
    model.opset_imports["com.microsoft"] = 1
    return model


def test_equal_subexpressions_are_merged_and_unread_nodes_dropped() -> None:
    model = cluttered_model()
    passes.RemoveUnused()(model)
    assert op_types(model) == ["Exp", "Add"]


def test_unread_weights_are_dropped_unevaluated() -> None:
    model = cluttered_model()
    passes.RemoveUnused()(model)
    assert "unread.weight" not in model.graph.initializers


def test_an_optional_input_is_kept_with_its_default() -> None:
    model = cluttered_model()
    passes.RemoveUnused()(model)
    assert "logits_to_keep" in model.graph.initializers
    assert [value.name for value in model.graph.inputs] == ["x", "logits_to_keep"]


def test_unread_functions_and_opsets_are_dropped() -> None:
    model = cluttered_model()
    passes.RemoveUnused()(model)
    assert not model.functions and set(model.opset_imports) == {""}


def test_a_clean_model_computes_the_same() -> None:
    model = cluttered_model()
    passes.RemoveUnused()(model)
    x = random(2, 3)
    np.testing.assert_allclose(run(model, {"x": x})[0], 2 * np.exp(x), **CLOSE)


def test_logits_to_keep_still_works_after_every_pass() -> None:
    config = one_layer()
    model = reference(config)
    up_to("remove_unused", model)
    feeds = decoder_feeds(config, [16, 9], 16)
    every, last = run(model, feeds)[0], run(model, feeds | {"logits_to_keep": np.asarray(1)})[0]
    np.testing.assert_allclose(last[:, 0], every[[0, 1], [15, 8]], **CLOSE)
