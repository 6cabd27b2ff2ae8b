"""The passes of `--target ort-cuda`, one after the other on a CPU: each leaves the numbers as they were."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from pass_checks import CLOSE, CONTEXT, CUDA, chunked

from l4export import passes
from l4export.graph.contents import weights_of
from l4export.graph.matching import nodes_of
from l4export.model.config import ModelConfig
from l4export.model.rope import YarnScaling
from tiny_graphs import decoder_feeds, loaded, one_layer, reference, run, tiny_config

YARN = YarnScaling(4.0, 1.5, 32.0, 1.0, 64, True)
CONFIGS = {
    "scout": tiny_config("scout"),
    "maverick": tiny_config("maverick"),
    "guard": tiny_config("guard"),
    "mobile": tiny_config("mobile"),
    "yarn": one_layer("scout", rope_scaling=YARN),
    "top-2": one_layer("scout", num_experts_per_tok=2),
}
ON_CPU = [name for name in CUDA if name != "fuse_qk_norm"]


def opened(model: ir.Model) -> ort.InferenceSession:
    """Inlined first: functions without their refusals are not meant to be run."""
    inlined = model.clone()
    passes.InlineDialect()(inlined)
    return loaded(inlined)


def call(
    session: ort.InferenceSession, config: ModelConfig, ids: np.ndarray, past: Any, lengths: list[int], keep: int = 0
) -> list[np.ndarray]:
    """One call with everything given."""
    feeds = decoder_feeds(config, [ids.shape[1]] * len(ids), ids.shape[1], past=past)
    inputs = {value.name: value.shape for value in session.get_inputs()}
    if isinstance(past, int):  # of chunked layers, one chunk
        for name, shape in inputs.items():
            if "chunk_capacity" in shape:
                feeds[name] = feeds[name][:, :, : config.attention_chunk_size]
    feeds |= {
        "input_ids": ids,
        "mask_start": np.asarray(lengths, np.int64),
        "cache_start": np.zeros(len(ids), np.int64),
        "logits_to_keep": np.asarray(keep, np.int64),
    }
    optional = {value.name for value in session.get_overridable_initializers()}
    return session.run(None, {name: feeds[name] for name in (*inputs, *optional)})


def logits(model: ir.Model, config: ModelConfig) -> list[np.ndarray]:
    """Of a prompt of one row, of tokens after it in its chunk, and of two rows at different positions."""
    ids, session = np.random.default_rng(4).integers(0, config.vocab_size, (2, 16)), opened(model)
    first = call(session, config, ids[:1, :11], CONTEXT, [0])
    later = call(session, config, ids[:1, 11:14], first[1:], [11], keep=2)
    shorter = call(session, config, ids[1:, :5], CONTEXT, [0], keep=1)
    both = [np.concatenate(pair) for pair in zip(later[1:], shorter[1:], strict=True)]
    return [first[0], later[0], shorter[0], call(session, config, ids[:, 15:], both, [14, 5])[0]]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_pass_but_the_last_keeps_the_numbers(config: ModelConfig) -> None:
    model = chunked(reference(config))
    expected = logits(model, config)
    for name in ON_CPU:
        if CUDA[name]()(model).modified and ON_CPU.index(name) >= ON_CPU.index("require_inputs"):
            for got, wanted in zip(logits(model, config), expected, strict=True):
                np.testing.assert_allclose(got, wanted, **CLOSE, err_msg=name)


# What each makes


def up_to(name: str, model: ir.Model) -> ir.Model:
    for other, make in CUDA.items():
        make()(model)
        if other == name:
            return model
    raise KeyError(name)


def attentions(model: ir.Model) -> list[ir.Node]:
    return nodes_of(model, "GroupQueryAttention", "com.microsoft")


def test_the_total_is_a_shape_for_each_size_of_cache() -> None:
    model = up_to("set_total_to_capacity", reference(tiny_config()))
    totals = [node.inputs[6] for node in attentions(model)]
    assert [value and value.name for value in totals] == [
        *["/attention/chunk_capacity/total_sequence_length"] * 3,
        "/attention/capacity/total_sequence_length",
    ]
    for total, node in zip(totals, attentions(model), strict=True):
        value, makers = total, []
        while value is not None and (maker := value.producer()) is not None:
            makers.append(maker.op_type)
            value = maker.inputs[0]
        assert makers == ["Cast", "Squeeze", "Shape"]
        assert value is not None and value.shape is not None and node.inputs[3] is not None
        assert value.shape[2] == node.inputs[3].shape[2]  # type: ignore[index]


def test_the_capacity_as_total_is_exact_on_a_cpu_but_for_first_calls_of_several_rows() -> None:
    """To the bit. Several rows with several tokens are refused, unless they fill the cache, and never wrong."""
    config = one_layer("guard", chunked=False)
    model, ids = chunked(reference(config)), np.random.default_rng(1).integers(0, config.vocab_size, (2, CONTEXT))
    for name in ("limit_context", "fuse_experts", "move_qk_norm_before_rotary", "fuse_attention"):
        CUDA[name]()(model)
    before = opened(model)
    passes.SetTotalToCapacity()(model)
    after = opened(model)
    for part in (ids[:1, :20], ids[:1, :1], ids[:, :1], ids):
        calls = [call(session, config, part, CONTEXT, [0] * len(part)) for session in (before, after)]
        for got, wanted in zip(*calls, strict=True):
            np.testing.assert_array_equal(got, wanted)
    past = [np.concatenate([array, array]) for array in call(before, config, ids[:1, :20], CONTEXT, [0])[1:]]
    for rows in (1, 2):
        arguments = (config, ids[:rows, 20:21], [array[:rows] for array in past], [20, 7][:rows])
        for got, wanted in zip(call(before, *arguments), call(after, *arguments), strict=True):
            np.testing.assert_array_equal(got, wanted)
    call(before, config, ids[:, :20], CONTEXT, [0, 0])
    with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1"):
        call(after, config, ids[:, :20], CONTEXT, [0, 0])


@pytest.mark.parametrize("keep", [-1, 0, 1, 3, 7, 8])
def test_positions_are_kept_as_the_function_keeps_them(keep: int) -> None:
    """Also more than there are, and of rows that are shorter than what is asked for."""
    config = tiny_config("guard")
    model, gathered = chunked(reference(config)), chunked(reference(config))
    passes.KeepPositionsByGather()(gathered)
    feeds = decoder_feeds(config, [7, 2], 7, past=CONTEXT) | {"logits_to_keep": np.asarray(keep)}
    np.testing.assert_array_equal(run(gathered, feeds)[0], run(model, feeds)[0])


def test_every_layer_multiplies_once_for_queries_keys_and_values() -> None:
    model = up_to("pack_qkv", reference(tiny_config()))
    products = [node for node in model.graph if "q_proj_k_proj_v_proj/MatMul" in str(node.name)]
    assert len(products) == 4
    held = weights_of(products[0].inputs[1])
    assert held is not None and held.part == "values" and held.rows == (64, 32, 32)
    assert [name.split(".")[-2] for name in held.names] == ["q_proj", "k_proj", "v_proj"]


def test_float_weights_of_another_order_stay_apart() -> None:
    """A product with [K, N] weights has no rows to put one below the other."""
    model = reference(tiny_config())
    for name in ("limit_context", "lay_out_kv_cache", "fuse_experts", "move_qk_norm_before_rotary", "fuse_attention"):
        CUDA[name]()(model)
    assert not passes.PackQKV()(model).modified


def test_attention_takes_the_product_where_nothing_lies_between() -> None:
    """Maverick's queries and keys have no norm; the last layer's queries have a temperature."""
    model = up_to("attend_to_packed_qkv", reference(tiny_config("maverick")))
    makers = []
    for node in attentions(model):
        packed, *others = node.inputs[:3]
        assert others == [None, None] and packed is not None
        makers.append(packed.producer().op_type)  # type: ignore[union-attr]
    assert makers == ["FusedMatMul"] * 3 + ["Reshape"] and not nodes_of(model, "Split")


def test_a_split_that_is_read_twice_stays() -> None:
    model = up_to("pack_qkv", reference(tiny_config("maverick")))
    split = nodes_of(model, "Split")[0]
    model.graph.outputs.append(split.outputs[2])
    extra = ir.Node("", "Identity", [split.outputs[2]])
    model.graph.insert_after(split, extra)
    passes.AttendToPackedQKV()(model)
    assert nodes_of(model, "Split") == [split]  # of all four


def test_every_sum_of_the_stream_is_in_a_norm() -> None:
    model = up_to("fuse_residual_norm", reference(tiny_config()))
    types = Counter(node.op_type for node in model.graph if str(node.name).endswith(("layernorm", "/norm")))
    assert types["SkipSimplifiedLayerNormalization"] == 2 * 4 and types["RMSNormalization"] == 1
    assert not [node for node in model.graph if "residual" in str(node.name)]


def test_a_constant_that_is_added_is_no_residual() -> None:
    model = reference(one_layer("guard"))
    add = next(node for node in model.graph if str(node.name).endswith("attn_residual"))
    add.replace_input_with(1, next(iter(model.graph.initializers.values())))
    passes.FuseResidualNorm()(model)
    assert add in list(model.graph)


def test_float16_sums_are_those_of_add() -> None:
    """The norm is taken of the unrounded sum, so it may differ by a rounding of values up to four."""
    config = one_layer("guard")
    model, fused = reference(config, ir.DataType.FLOAT16), reference(config, ir.DataType.FLOAT16)
    passes.FuseResidualNorm()(fused)
    feeds = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in decoder_feeds(config, [9], 9).items()
    }
    before, after = run(model, feeds), run(fused, feeds)
    np.testing.assert_allclose(after[0], before[0], atol=2e-2 * np.abs(before[0]).max())


# The norm inside attention, which no CPU executes


def test_the_norm_is_inside_attention_with_weights_of_one() -> None:
    config = tiny_config()
    model = up_to("fuse_qk_norm", reference(config))
    passes.AttendToPackedQKV()(model)
    passes.RemoveUnused()(model)
    for layer, node in enumerate(attentions(model)):
        if not config.rope_layers[layer]:
            assert len(node.inputs) < 15
            continue
        assert node.inputs[1] is node.inputs[2] is None
        for value in node.inputs[14:16]:
            assert value is not None and value.const_value is not None
            np.testing.assert_array_equal(value.const_value.numpy(), np.ones(config.head_dim, np.float32))
        assert node.attributes.get_float("qk_norm_epsilon") == np.float32(config.rms_norm_eps)
    assert not nodes_of(model, "Split")
    with pytest.raises(Exception, match="norm"):
        call(opened(model), config, np.zeros((1, 1), np.int64), CONTEXT, [0])


@pytest.mark.parametrize("name", ["scout", "yarn"])
def test_the_definition_of_the_operators_norm_undoes_the_pass(name: str) -> None:
    """The schema's words, written out in NumPy's place by standard operators: the logits come back."""
    config = CONFIGS[name]
    model = up_to("copy_lengths_to_device", reference(config))
    expected = logits(model, config)
    assert passes.FuseQKNorm()(model).modified
    for node in attentions(model):
        if len(node.inputs) > 15:
            heads = (node.attributes.get_int("num_heads"), node.attributes.get_int("kv_num_heads"))
            epsilon = node.attributes.get_float("qk_norm_epsilon")
            for index, count in enumerate(heads):
                node.replace_input_with(index, _rms_by_head(model, node, index, count, config.head_dim, epsilon))
            node.resize_inputs(14)
            del node.attributes["qk_norm_epsilon"]
    for got, wanted in zip(logits(model, config), expected, strict=True):
        np.testing.assert_allclose(got, wanted, **CLOSE)


def _rms_by_head(model: ir.Model, node: ir.Node, index: int, heads: int, width: int, epsilon: float) -> ir.Value:
    """x / sqrt(mean(x^2) + epsilon), head by head."""
    from l4export.graph.builder import GraphBuilder

    b = GraphBuilder(f"{node.name}/{index}")
    x = b.op("Reshape", node.inputs[index], b.constant([0, 0, heads, width], "by_head"))
    mean = b.op("ReduceMean", b.op("Mul", x, x), b.constant([-1], "last"), keepdims=1)
    root = b.op("Sqrt", b.op("Add", mean, b.constant(np.asarray(epsilon, np.float32), "epsilon")))
    y = b.op("Reshape", b.op("Div", x, root), b.constant([0, 0, -1], "joined"), name="y")
    for value in b.initializers:
        model.graph.register_initializer(value)
    model.graph.insert_before(node, b.nodes)
    return y


def test_norms_that_differ_stay_outside() -> None:
    model = up_to("copy_lengths_to_device", reference(one_layer()))
    norm = next(node for node in model.graph if str(node.name).endswith("k_norm/normed"))
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.5)
    assert not passes.FuseQKNorm()(model).modified


def test_weights_that_are_not_one_stay_outside() -> None:
    model = up_to("copy_lengths_to_device", reference(one_layer()))
    ones = model.graph.initializers["/attention/qk_norm/ones_16"]
    ones.const_value = ir.tensor(np.full(16, 2, np.float32), name=ones.name)
    assert not passes.FuseQKNorm()(model).modified


def test_a_swish_keeps_its_alpha() -> None:
    model = reference(one_layer("guard"))
    nodes_of(model, "Swish")[0].attributes["alpha"] = ir.AttrFloat32("alpha", 1.5)
    passes.FuseSwish()(model)
    (node,) = nodes_of(model, "QuickGelu", "com.microsoft")
    assert node.attributes.get_float("alpha") == 1.5
