"""`--target onnx`: standard operators alone, the same numbers, and none of the forms that TensorRT takes wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime_genai as og
import pytest
from safetensors.numpy import load_file, save_file

from l4export import passes, runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.errors import InputError
from l4export.graph.builder import GraphBuilder
from l4export.graph.dialect import DOMAIN
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.parity.whole_model import check_parity
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.reference.transformers_model import HFReference
from tiny_graphs import graph_input, model_of, one_layer, reference, run, source, typed
from workshop import VARIANTS, Workshop, assert_close, copy_checkpoint, random_ids

QUANTIZATIONS = ("none", "int8", "int4", "fp8")
MATRICES = ("model.layers.*_proj.weight", "model.layers.*.experts.*_proj")
variants = pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.xdist_group(v)) for v in VARIANTS])
quantizations = pytest.mark.parametrize("quant", QUANTIZATIONS)


def options(quant: str = "none", dtype: str = "fp32", **changes: object) -> BuildOptions:
    policy = standard_policy(quant)
    return BuildOptions(target="onnx", dtype=dtype, max_context=128, policy=policy, **changes)  # type: ignore[arg-type]


def every_node(graph: ir.Graph) -> list[ir.Node]:
    """Those of subgraphs too."""
    return list(graph.all_nodes())


def constants(model: ir.Model) -> Iterator[tuple[ir.Node, np.ndarray, np.ndarray]]:
    """Every DequantizeLinear with its codes and scales."""
    for node in every_node(model.graph):
        if node.op_type == "DequantizeLinear":
            codes, scales = (value.const_value for value in node.inputs[:2] if value is not None)
            assert codes is not None and scales is not None
            yield node, codes.numpy(), scales.numpy()


# Numbers -------------------------------------------------------------------------------------------------------------


ALL = [(layout, quant) for layout in ("static", "chunked") for quant in QUANTIZATIONS]
SLOW = {("chunked", "int8"), ("chunked", "fp8")}


@variants
@pytest.mark.parametrize(("layout", "quant"), [pytest.param(*c, marks=[pytest.mark.slow] * (c in SLOW)) for c in ALL])
def test_logits_are_those_of_the_dequantised_weights(
    workshop: Workshop, tmp_path: Path, variant: str, layout: str, quant: str
) -> None:
    """Prefill, decode past four chunk boundaries and a greedy continuation; at float level, activations unrounded."""
    checkpoint = workshop.checkpoint(variant)
    build(checkpoint, tmp_path / "e", options(quant, kv_layout=layout))
    onnx.checker.check_model(str(tmp_path / "e" / "decoder.onnx"), full_check=True)
    report = check_parity(tmp_path / "e", checkpoint, 50, 30, dequantized=quant != "none")
    assert report.passed, report.failures
    assert report.thresholds["max_relative_difference"] == 1e-4
    assert report.greedy_prefix == 1


@pytest.mark.parametrize("variant", ["scout-top2", "mobile"])
@quantizations
def test_float16_engines_are_close_to_them(workshop: Workshop, tmp_path: Path, variant: str, quant: str) -> None:
    checkpoint = workshop.checkpoint(variant)
    build(checkpoint, tmp_path / "e", options(quant, "fp16"))
    report = check_parity(tmp_path / "e", checkpoint, 50, 30, dequantized=quant != "none")
    assert report.passed, report.failures


def test_rows_of_different_lengths(workshop: Workshop, tmp_path: Path) -> None:
    build(workshop.checkpoint("scout"), tmp_path / "e", options())
    prompts = [random_ids(n, seed=n).tolist() for n in (50, 17, 33)]
    steps = list(runtimes.load(tmp_path / "e").generate_batch(prompts, max_new_tokens=40, stop_token_ids=()))
    for row, prompt in enumerate(prompts):
        assert [step[row] for step in steps] == workshop.greedy("scout", prompt, 40)


def test_a_slice_of_layers(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = workshop.checkpoint("maverick")
    build(checkpoint, tmp_path / "e", options("int4", layers=(1, 3)))
    ids = random_ids(40)
    expected = HFReference(checkpoint, (1, 3))
    expected.replace(dequantized_weights(tmp_path / "e"))
    assert_close(runtimes.load(tmp_path / "e").session().append(ids)[0], expected.logits(ids[None])[0])


def test_the_dequantised_weights_are_near_the_checkpoints(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = workshop.checkpoint("scout")
    build(checkpoint, tmp_path / "e", options("int8"))
    weights, found = load_file(checkpoint / "model.safetensors"), dict(dequantized_weights(tmp_path / "e"))
    assert set(weights) - set(found) == {name for name in weights if "norm" in name or "router" in name}
    for name, values in found.items():
        assert values.shape == weights[name].shape
        # half a step of the largest scale: amax / 127
        assert np.abs(values - weights[name]).max() <= np.abs(weights[name]).max() / 127 * 0.501


def test_onnxruntime_genai_opens_it(workshop: Workshop, tmp_path: Path) -> None:
    build(workshop.checkpoint("scout"), tmp_path / "e", options())
    model = og.Model(str(tmp_path / "e"))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=90)
    generator = og.Generator(model, parameters)
    prompt = random_ids(40).tolist()  # a continuation without a stop token
    generator.append_tokens(prompt)
    expected = workshop.greedy("scout", prompt, 10)
    for token in expected:
        generator.generate_next_token()
        assert generator.get_next_tokens()[0] == token


# The forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["scout", "maverick-top2", "mobile"])
@quantizations
def test_only_forms_that_every_runtime_computes_alike(workshop: Workshop, variant: str, quant: str) -> None:
    model = plan_build(workshop.checkpoint(variant), options(quant, "fp16")).model
    assert set(model.opset_imports) == {""} and model.opset_imports[""] == 24 and not model.functions
    nodes = every_node(model.graph)
    assert {node.domain for node in nodes} == {""}
    for node in nodes:
        if node.op_type == "Attention":
            assert len(node.inputs) == 4, "lengths (nonpad_kv_seqlen) are ignored by TensorRT"
            assert node.attributes.get_int("is_causal") == 0, "causality is counted from the first slot"
            mask = node.inputs[3]
            assert mask is not None and mask.producer() is not None
            assert mask.producer().op_type == "And"  # type: ignore[union-attr]
        if node.op_type == "TensorScatter":
            assert node.inputs[0] in model.graph.inputs and node.outputs[0] in model.graph.outputs
            assert node.attributes.get_string("mode") == "linear"
    experts = sum(node.op_type == "If" for node in nodes)
    assert experts == {"scout": 4, "maverick-top2": 2, "mobile": 0}[variant]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("quant", QUANTIZATIONS[1:])
def test_codes_are_signed_around_zero_and_read_by_dequantisation_alone(
    workshop: Workshop, quant: str, dtype: str
) -> None:
    model = plan_build(workshop.checkpoint("maverick"), options(quant, dtype)).model
    kinds = set()
    for node, codes, scales in constants(model):
        assert len(node.inputs) == 2, "zero points"
        assert node.inputs[0] is not None and node.inputs[1] is not None
        assert all(use.node.op_type == "DequantizeLinear" for use in node.inputs[0].uses())
        kinds.add(node.inputs[0].dtype)
        assert (scales > 0).all()
        assert scales.dtype == {"fp32": np.float32, "fp16": np.float16}[dtype]
        if scales.ndim == 1:  # one for each channel
            assert node.attributes.get_int("axis") == 0 and len(scales) == len(codes)
        else:
            assert node.attributes.get_int("axis") == codes.ndim - 1 == scales.ndim - 1
            assert scales.shape[-1] * node.attributes.get_int("block_size") == codes.shape[-1]
    types = {"int8": {ir.DataType.INT8}, "int4": {ir.DataType.INT4, ir.DataType.INT8}}
    assert kinds == types.get(quant, {ir.DataType.FLOAT8E4M3FN})


def test_weights_of_zeros_have_a_scale_above_zero(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.layers.1.feed_forward.experts.gate_up_proj"
    weights[name][:, :32] = 0
    save_file(weights, checkpoint / "model.safetensors")
    for quant in ("int4", "fp8"):
        model = plan_build(checkpoint, options(quant)).model
        (scales,) = (s for node, _, s in constants(model) if str(node.name) == f"/{name}/DequantizeLinear")
        assert (scales > 0).all()
    build(checkpoint, tmp_path / "e", options("int4"))
    assert not dict(dequantized_weights(tmp_path / "e"))[name][:, :32].any()


def test_a_tied_embedding_is_stored_once(workshop: Workshop) -> None:
    planned = plan_build(workshop.checkpoint("mobile"), options("int8"))
    (node,) = (node for node, *_ in constants(planned.model) if "embed_tokens" in str(node.name))
    assert sorted(use.node.op_type for use in node.outputs[0].uses()) == ["Gather", "Transpose"]


# Passes --------------------------------------------------------------------------------------------------------------


def moe_model(k: int) -> ir.Model:
    """x [B, S, 8] and router logits [B, S, 5] into 5 experts of width 6."""
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    inputs = [graph_input(name, ir.DataType.FLOAT, 3) for name in ("x", "router_logits")]
    shapes = {"gate_up": (5, 8, 12), "down": (5, 6, 8)}
    weights = [b.initializer(source(rng.standard_normal(s).astype(np.float32)), name) for name, s in shapes.items()]
    y = b.op("MoE", *inputs, *weights, domain=DOMAIN, name="experts", k=k)
    return model_of(b, inputs, [typed(y, ir.DataType.FLOAT)])


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 6])  # on both sides of tokens * k = experts
def test_both_forms_of_the_experts_compute_the_same(k: int, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    feeds = {
        "x": rng.standard_normal((1, tokens, 8)).astype(np.float32),
        "router_logits": 3 * rng.standard_normal((1, tokens, 5)).astype(np.float32),
    }
    model = moe_model(k)
    (before,) = run(model, feeds)
    passes.LowerExperts()(model)
    (after,) = run(model, feeds)
    assert np.abs(before).max() > 1
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4)  # sums in another order


def test_few_tokens_take_the_weights_of_the_chosen_experts() -> None:
    model = moe_model(2)
    passes.LowerExperts()(model)
    (branch,) = (node for node in model.graph if node.op_type == "If")
    gather, dense = (branch.attributes[f"{side}_branch"].as_graph() for side in ("then", "else"))
    assert [node.op_type for node in gather].count("Gather") == 2
    assert "Gather" not in [node.op_type for node in dense]
    assert not gather.initializers and not dense.initializers  # weights and constants are the outer graph's


def test_caches_that_grow_are_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="caches must stay in place"):
        passes.LowerAttention()(reference(one_layer()))


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"policy": Policy((Rule(MATRICES, "int4", symmetric=False),))}, "no zero points"),
        ({"policy": Policy((Rule(("nothing.*",), "int4"),))}, "names no weight"),
        (
            {"policy": Policy((Rule(MATRICES, "int4", 128),))},
            "block size 128 does not divide its width of 64; choose 16, 32, 64",
        ),
        ({"kv_layout": "concat"}, "updates caches in place; use static or chunked"),
        ({"dtype": "bf16"}, "no bfloat16 MatMul"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(
    workshop: Workshop, tmp_path: Path, changes: dict[str, object], word: str
) -> None:
    with pytest.raises(InputError, match=word):
        build(workshop.checkpoint("scout"), tmp_path / "e", BuildOptions(target="onnx", **changes))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_tokens_beyond_the_caches_capacity_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    build(workshop.checkpoint("mobile"), tmp_path / "e", options())
    inference = runtimes.load(tmp_path / "e").inference
    cache = {
        value.name: np.zeros((1, 2, 16, 16), np.float32) for value in inference.get_inputs() if "past" in value.name
    }
    feeds = {"input_ids": np.ones((1, 4), np.int64), "attention_mask": np.ones((1, 4), np.int64), **cache}
    inference.run(None, {**feeds, "mask_start": np.asarray([12])})
    with pytest.raises(Exception, match="TensorScatter"):
        inference.run(None, {**feeds, "mask_start": np.asarray([13])})


def test_a_token_outside_the_vocabulary_stops_the_graph(workshop: Workshop, tmp_path: Path) -> None:
    build(workshop.checkpoint("mobile"), tmp_path / "e", options())
    engine = runtimes.load(tmp_path / "e")
    names = [value.name for value in engine.inference.get_inputs()]
    cache = {name: np.zeros((1, 2, 16, 16), np.float32) for name in names if "past" in name}
    feeds = {"attention_mask": np.ones((1, 1), np.int64), **cache}
    with pytest.raises(Exception, match="token_ids_must_be_in_the_vocabulary"):
        engine.inference.run(None, {"input_ids": np.asarray([[256]]), **feeds})
    engine.inference.run(None, {"input_ids": np.asarray([[255]]), **feeds})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BuildOptions(target="onnx", kv_dtype="int8"), "--kv-dtype int8: --target onnx has caches of --dtype"),
        (BuildOptions(target="onnx", calibrate=Path("text")), "--calibrate: weights for --target onnx are rounded"),
    ],
)
def test_what_only_ort_cpu_has_is_refused(
    workshop: Workshop, tmp_path: Path, options: BuildOptions, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        build(workshop.checkpoint("scout"), tmp_path / "e", options)
