"""What holds for every pass: names, notes of what values hold, weights left unread, and the order it asks for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from pass_checks import CONTEXT, EVERY, FLOAT, MAKE, VISION, chunked, fuse, interface, up_to

from l4export import passes
from l4export.compiler.pipeline import pipeline, run_passes
from l4export.errors import InputError
from l4export.graph.contents import layer_values, weights_of
from l4export.model.config import ModelConfig
from l4export.model.decoder import build_decoder
from l4export.targets import GraphOptions
from l4export.weights.recipes import Source
from tiny_graphs import UnreadableData, reference, tiny_config


def wide_config() -> ModelConfig:
    """A tiny model whose experts are as wide as what CUDA's kernel reads at a time."""
    return tiny_config(intermediate_size=64)


def test_the_table_has_every_pass() -> None:
    assert {type(make()).__name__ for make in (MAKE | VISION).values()} == set(passes.__all__)


@pytest.mark.parametrize("name", EVERY)
def test_a_second_run_changes_nothing(name: str) -> None:
    model = reference(wide_config())
    assert up_to(name, model).modified
    if name.startswith("quantize_weights"):
        with pytest.raises(InputError, match="names no weight of this model that can be quantised"):
            MAKE[name]()(model)
    else:
        assert not MAKE[name]()(model).modified


@pytest.mark.parametrize("name", EVERY)
def test_inputs_and_outputs_keep_their_names(name: str) -> None:
    model = reference(wide_config())
    names = interface(model)
    up_to(name, model)
    assert interface(model) == names


@pytest.mark.parametrize("name", EVERY)
def test_node_names_stay_unique(name: str) -> None:
    model = reference(wide_config())
    up_to(name, model)
    names = [node.name for node in model.graph]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", EVERY)
def test_no_pass_reads_a_weight(name: str) -> None:
    model = build_decoder(wide_config(), lambda _, shape: Source(UnreadableData(shape, np.float32)), FLOAT)
    assert up_to(name, model).modified


# What values hold


@pytest.mark.parametrize("name", EVERY)
def test_layers_keep_their_values(name: str) -> None:
    """Residual streams, router logits and caches are found by what they are, under the names they had."""
    model = reference(wide_config())
    before = {held: value.name for held, value in layer_values(model.graph).items()}
    assert len(before) == 4 * (1 + 1 + 4)
    up_to(name, model)
    assert {held: value.name for held, value in layer_values(model.graph).items()} == before


@pytest.mark.parametrize("name", EVERY)
def test_every_weight_can_be_found(name: str) -> None:
    """Each is held once as values, codes or tiles, and values are the checkpoint's, laid out as the note says."""
    model, stored = reference(wide_config()), reference(wide_config())
    up_to(name, model)
    originals = {name: _as_stored(value) for name, value in stored.graph.initializers.items() if weights_of(value)}
    held = [(weights_of(value), value) for value in model.graph.initializers.values()]
    found = [
        each
        for weights, _ in held
        if weights and weights.part in ("values", "codes", "tiles")
        for each in weights.names
    ]
    assert sorted(found) == sorted(originals)
    for weights, value in held:
        if weights is not None and weights.part == "values":
            expected = [originals[name] for name in weights.names]
            np.testing.assert_array_equal(
                _as_stored(value), expected[0] if len(expected) == 1 else np.concatenate(expected)
            )


def _as_stored(value: ir.Value) -> np.ndarray:
    weights, tensor = weights_of(value), value.const_value
    assert weights is not None and tensor is not None
    match weights.layout:
        case "stored":
            return tensor.numpy()
        case "transposed":
            return tensor.numpy().swapaxes(-1, -2)
        case "interleaved":
            rows = tensor.numpy()
            return np.concatenate([rows[:, 0::2], rows[:, 1::2]], axis=1).swapaxes(-1, -2)
        case "in_turn":
            raise AssertionError("only tiles lie in turn")


# The order


def fused(model: ir.Model) -> ir.Model:
    fuse(model)
    return model


def after(*steps: ir.passes.InPlacePass) -> Callable[[ir.Model], ir.Model]:
    def run(model: ir.Model) -> ir.Model:
        for step in steps:
            step(model)
        return model

    return run


def quantised(model: ir.Model) -> ir.Model:
    up_to("quantize_weights_for_onnxruntime", model)
    return model


def inlined(model: ir.Model) -> ir.Model:
    return after(passes.InlineDialect())(model)


DIALECT = [
    "limit_context",
    "lay_out_kv_cache",
    "fuse_experts",
    "lower_experts",
    "cast_kv_cache",
    "move_qk_norm_before_rotary",
    "fuse_attention",
    "lower_attention",
    "leave_checks_to_runtime",
    "keep_positions_by_gather",
    "pack_qkv",
    "write_out_qk_norm",
]


@pytest.mark.parametrize("name", DIALECT)
def test_passes_over_the_dialect_refuse_a_graph_without_it(name: str) -> None:
    with pytest.raises(ir.passes.PreconditionError, match="run this pass before InlineDialect"):
        MAKE[name]()(inlined(reference(wide_config())))


@pytest.mark.parametrize(
    ("name", "prepare", "remedy"),
    [
        ("allow_decomposed_attention", after(), "run LowerAttention first"),
        ("cast_kv_cache", fused, "run CastKVCache before FuseAttention"),
        ("fix_cache_capacity", after(), r'run LayOutKVCache\("static"\) first'),
        ("fix_cache_capacity", lambda model: inlined(chunked(model)), "run before InlineDialect"),
        ("fuse_attention", after(), r"run LimitContext\(64\) first"),
        ("fuse_attention", after(passes.LimitContext(CONTEXT)), "run MoveQKNormBeforeRotary first"),
        ("lay_out_kv_cache", fused, "run LayOutKVCache before FuseAttention"),
        (
            "lay_out_kv_cache",
            after(passes.LayOutKVCache("static"), passes.LowerAttention()),
            "run LayOutKVCache before LowerAttention",
        ),
        ("lower_attention", after(), r'Run LayOutKVCache\("static"\) first'),
        ("mark_raw_expert_weights", after(), "run FuseExperts and QuantizeWeightsForOnnxRuntime first"),
        ("pack_expert_weights", after(), "run FuseExperts and QuantizeWeightsForOnnxRuntime first"),
        ("pack_expert_weights", quantised, "run MarkRawExpertWeights first"),
        ("pack_projections", after(), "run QuantizeWeightsForOnnxRuntime first"),
        ("pack_qkv", after(), "run FuseAttention first"),
        ("tile_products", after(), "run QuantizeWeightsForOnnxRuntime first"),
        ("tile_products", quantised, r"scales are not float16; run QuantizeWeightsForOnnxRuntime\("),
        ("tile_experts", after(), "run FuseExperts and QuantizeWeightsForOnnxRuntime first"),
        ("tile_experts", quantised, r"scales are not float16; run QuantizeWeightsForOnnxRuntime\("),
        ("set_total_to_capacity", after(), "run FuseAttention first"),
        ("set_total_to_capacity", fused, r'its cache grows; run LayOutKVCache\("static"\) first'),
        ("fuse_swish", after(), "run FuseExperts first"),
        ("copy_lengths_to_device", after(), "run InlineDialect first"),
        ("quantize_activations", after(), "run QuantizeWeightsInONNX first"),
        ("quantize_kv_cache", after(), "run FuseAttention first"),
        ("set_activation_scales", after(), "run QuantizeActivations first"),
        ("set_kv_scales", fused, "run QuantizeKVCache first"),
        ("quantize_weights_for_onnxruntime", after(), "run FuseExperts first"),
        ("quantize_weights_for_onnxruntime", after(passes.FuseExperts()), "run KeepWeightsUntransposed first"),
        ("quantize_weights_in_onnx", after(), "run LowerExperts first"),
    ],
)
def test_a_pass_at_the_wrong_time_is_refused(name: str, prepare: Callable[[ir.Model], ir.Model], remedy: str) -> None:
    model = prepare(reference(wide_config()))
    before = [(node.name, node.op_type) for node in model.graph]
    with pytest.raises(ir.passes.PreconditionError, match=remedy):
        MAKE[name]()(model)
    assert [(node.name, node.op_type) for node in model.graph] == before


def test_the_head_read_as_a_transpose_must_be_kept_first() -> None:
    """A tied head reads a `Transpose` of the embedding."""
    config = tiny_config("mobile")
    with pytest.raises(ir.passes.PreconditionError, match="lm_head/MatMul: run KeepWeightsUntransposed first"):
        step, model = MAKE["quantize_weights_for_onnxruntime"](), reference(config)
        for node in list(model.graph):  # as if only the head had been forgotten
            if node.op_type == "MatMul" and "lm_head" not in str(node.name):
                node.op_type = "FusedMatMul"
        step(model)


def test_a_pipeline_does_not_hide_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MoveQKNormBeforeRotary", passes.RemoveUnused)
    with pytest.raises(ir.passes.PreconditionError, match="run MoveQKNormBeforeRotary first"):
        run_passes(reference(wide_config()), pipeline("ort-cpu", GraphOptions("static", CONTEXT)))
