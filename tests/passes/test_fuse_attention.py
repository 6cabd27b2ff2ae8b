"""One fused operator for rotation, cache and attention, which computes the same, or a refusal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from pass_checks import CLOSE, CONTEXT, FLOAT, INT64, fuse, node

from l4export import passes
from l4export.graph.builder import GraphBuilder
from l4export.graph.dialect import DOMAIN
from l4export.model.config import ModelConfig
from tiny_graphs import decoder_feeds, graph_input, model_of, one_layer, op_types, reference, run, tiny_config, typed

FUSED_ATTENTION = "com.microsoft.GroupQueryAttention"


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
    passes.LimitContext(CONTEXT)(model)  # or the graph would refuse it before the operator does
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
    counted = {"outputs": 3, "domain": DOMAIN, "name": "lengths", "max_context": CONTEXT}
    lengths = b.ops("SequenceLengths", mask, ids, start, start, **counted)
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
