"""FP8 activations: the rounding by its definition, scales as measured, engines as transformers that round alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import onnxruntime_genai as og
import pytest
import torch
from safetensors.numpy import load_file, save_file

from l4export import passes, runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError
from l4export.graph.builder import GraphBuilder
from l4export.graph.contents import Weights
from l4export.inspection.dequantized_weights import DequantizedWeights, dequantized_weights, input_scales
from l4export.parity.by_layer import check_layers
from l4export.parity.whole_model import check_parity
from l4export.passes.quantize_activations import fp8_products
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.reference.transformers_model import HFReference
from tiny_graphs import graph_input, model_of, typed
from workshop import VARIANTS, Workshop, copy_checkpoint, random_ids

_QUICK = [("scout", "chunked"), ("maverick", "static"), ("mobile", "static")]
COMBINATIONS = [
    pytest.param(variant, layout, marks=[] if (variant, layout) in _QUICK else pytest.mark.slow)
    for variant in VARIANTS
    for layout in ("static", "chunked")
]
"""Variants and KV layouts, those that the quick tests leave out marked slow."""


def options(**changes: Any) -> BuildOptions:
    fixed = {"target": "onnx", "max_context": 128, "policy": standard_policy("fp8"), "activations": "fp8"}
    return BuildOptions(**{**fixed, **changes})


@pytest.fixture(scope="module")
def ids_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 token ids: three sequences of at most 128."""
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    path.write_text(" ".join(map(str, random_ids(300, seed=5))))
    return path


# The rounding --------------------------------------------------------------------------------------------------------


def e4m3(x: np.ndarray) -> np.ndarray:
    """The nearest +-m 2^(e-3), 8 <= m < 16 and -6 <= e <= 8, or m < 8 and e = -6; at most 448; ties to even m."""
    magnitude = np.minimum(np.abs(x.astype(np.float64)), 448)
    exponent = np.floor(np.log2(np.maximum(magnitude, 2.0**-6)))
    step = 2.0 ** (exponent - 3)
    return np.copysign(np.round(magnitude / step) * step, x)


def rounded(x: np.ndarray, scale: float) -> np.ndarray:
    """x' = s E4M3(x / s), the quotient in float32, the product in x's own type."""
    quotient = x.astype(np.float32) / np.float32(scale)
    return np.asarray((e4m3(quotient).astype(np.float32) * np.float32(scale)).astype(x.dtype))


def test_the_definition_is_that_of_the_number_format() -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = values[np.abs(values) <= 448].astype(np.float32)
    np.testing.assert_array_equal(e4m3(values), values.astype(ml_dtypes.float8_e4m3fn).astype(np.float64))
    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    middles = ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32)
    assert np.isin(e4m3(middles), numbers).all()


def session(model: ir.Model, **entries: str) -> ort.InferenceSession:
    """On ONNX Runtime's CPU provider, without fusions: it makes integer operators of FP8 products, and refuses them."""
    chosen: Any = ort.SessionOptions()
    chosen.log_severity_level = 4
    chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in entries.items():
        chosen.add_session_config_entry(f"session.{name}", value)
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), chosen, providers=["CPUExecutionProvider"])


def product_model(dtype: ir.DataType, scale: float) -> ir.Model:
    """x [2, 64, 16] times an FP8 identity, after the pass; and x times a float identity."""
    b = GraphBuilder()
    x = graph_input("x", dtype, 3)
    held = Weights(("w",), part="codes")
    codes = b.initializer(ir.tensor(np.eye(16, dtype=ml_dtypes.float8_e4m3fn)), "w.codes", held)
    scales = b.initializer(ir.tensor(np.ones(16, dtype.numpy())), "w.scales")
    weight = b.op("DequantizeLinear", codes, scales, axis=0)
    y = b.op("MatMul", x, weight, name="y")
    plain = b.op("MatMul", x, b.initializer(ir.tensor(np.eye(16, dtype=dtype.numpy())), "v"), name="plain")
    model = model_of(b, [x], [typed(y, dtype), typed(plain, dtype)])
    passes.QuantizeActivations()(model)
    passes.SetActivationScales({"w": scale})(model)
    return model


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
@pytest.mark.parametrize("scale", [0.01171875, 2.0**-9, 0.3])
def test_the_operators_round_as_defined(dtype: ir.DataType, scale: float) -> None:
    """To the bit; beyond 448 scales they saturate. What is multiplied by a float weight stays as it is."""
    x = (np.random.default_rng(0).standard_normal((2, 64, 16)) * 4).astype(dtype.numpy())
    scale = float(np.asarray(scale, dtype.numpy()))
    y, plain = session(product_model(dtype, scale)).run(None, {"x": x})
    np.testing.assert_array_equal(y, rounded(x, scale))
    np.testing.assert_array_equal(plain, x)
    assert (y != x).any()


def test_the_reference_rounds_as_defined(workshop: Workshop) -> None:
    reference = HFReference(workshop.checkpoint("mobile"))
    seen: list[np.ndarray] = []
    reference.round_inputs({"lm_head.weight": 0.0125})
    reference.model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy().copy()))
    x = (np.random.default_rng(1).standard_normal((1, 50, 64)) * 4).astype(np.float32)
    with torch.inference_mode():
        reference.model.lm_head(torch.from_numpy(x))
    np.testing.assert_array_equal(seen[0], rounded(x, 0.0125))


# Whole engines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "layout"), COMBINATIONS)
def test_engines_say_what_transformers_says_with_the_same_rounding(
    workshop: Workshop, tmp_path: Path, ids_file: Path, variant: str, layout: str
) -> None:
    """Both forms of the experts, past four chunk boundaries. Without the rounding the two are far apart."""
    checkpoint = workshop.checkpoint(variant)
    build(checkpoint, tmp_path / "e", options(kv_layout=layout, calibrate=ids_file))
    onnx.checker.check_model(str(tmp_path / "e" / "decoder.onnx"), full_check=True)
    report = check_parity(tmp_path / "e", checkpoint, 50, 30, dequantized=True)
    assert report.passed, report.failures
    assert report.prefill.mean_abs_difference < 1e-3 * report.prefill.largest_logit  # a value between codes may differ
    reference = HFReference(checkpoint)
    reference.replace(dequantized_weights(tmp_path / "e"))
    ids = random_ids(50)
    found = runtimes.load(tmp_path / "e").session().append(ids)[0]
    expected = reference.logits(ids[None])[0]
    assert np.abs(found - expected).mean() > 1e-2 * np.abs(expected).max()


def test_float16_engines_round_what_they_compute(workshop: Workshop, tmp_path: Path, ids_file: Path) -> None:
    """Of every product outside of the branches, to the bit; what is rounded differs from the reference by a step."""
    build(workshop.checkpoint("scout"), tmp_path / "e", options(dtype="fp16", calibrate=ids_file))
    model = ir.load(tmp_path / "e" / "decoder.onnx")
    pairs = {}
    for product in fp8_products(model.graph):
        if product.graph is model.graph:
            codes = product.x.producer().inputs[0].producer()  # type: ignore[union-attr]
            pairs[product.weight] = codes.inputs[0], product.x  # type: ignore[union-attr]
    names = {str(value.name) for pair in pairs.values() for value in pair if value is not None}
    model.graph.outputs.extend(value for node in model.graph for value in node.outputs if value.name in names)
    inference = session(model, model_external_initializers_file_folder_path=str(tmp_path / "e"))
    ids = random_ids((1, 40))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    pasts = [value.name for value in inference.get_inputs() if "past" in value.name]
    outputs = inference.run(None, {**feeds, **{name: np.zeros((1, 2, 64, 16), np.float16) for name in pasts}})
    values = dict(zip([value.name for value in inference.get_outputs()], outputs, strict=True))
    scales = input_scales(tmp_path / "e")
    assert len(pairs) == 4 * (4 + 3) + 1
    for weight, (x, y) in pairs.items():
        np.testing.assert_array_equal(values[y.name], rounded(values[x.name], scales[weight]))  # type: ignore[union-attr]


# Scales --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "layout"), [("scout-top2", "static"), ("maverick", "chunked"), ("mobile", "static")]
)
def test_scales_are_the_largest_inputs_of_transformers(
    workshop: Workshop, tmp_path: Path, ids_file: Path, monkeypatch: pytest.MonkeyPatch, variant: str, layout: str
) -> None:
    """amax / 448 of every product, unrounded, with the engine's own weights, over the three sequences of the text."""
    checkpoint = workshop.checkpoint(variant)
    build(checkpoint, tmp_path / "e", options(kv_layout=layout, calibrate=ids_file))
    reference = HFReference(checkpoint)
    reference.replace(dequantized_weights(tmp_path / "e"))
    largest: dict[str, float] = {}

    def see(weight: str, x: torch.Tensor) -> None:
        largest[weight] = max(largest.get(weight, 0.0), float(x.abs().max()))

    for name, module in reference.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args, weight=f"{name}.weight": see(weight, *args))
    experts = {id(value): name for name, value in reference.model.named_parameters() if ".experts." in name}
    multiply = torch.bmm

    def seen_bmm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        see(experts[id(weight)], x)
        return multiply(x, weight)

    monkeypatch.setattr(torch, "bmm", seen_bmm)
    ids = random_ids(300, seed=5)
    for start in range(0, 300, 128):
        reference.logits(ids[None, start : start + 128])
    scales = input_scales(tmp_path / "e")
    assert set(scales) == set(DequantizedWeights(tmp_path / "e").names)
    for weight, scale in scales.items():
        assert scale == pytest.approx(largest[weight] / 448, rel=1e-4), weight


def test_both_forms_of_the_experts_and_all_readers_of_one_input_round_alike(workshop: Workshop, tmp_path: Path) -> None:
    build(workshop.checkpoint("scout"), tmp_path / "e", options(layers=(0, 1)))
    graph = ir.load(tmp_path / "e" / "decoder.onnx").graph
    by_input: dict[int, list[str]] = {}
    scales: dict[str, set[float]] = {}
    for product in fp8_products(graph):
        by_input.setdefault(id(product.x), []).append(product.weight.rpartition("model.layers.0.")[2])
        rounding = product.x.producer()
        assert rounding is not None and rounding.inputs[1] is not None and rounding.inputs[1].const_value is not None
        scales.setdefault(product.weight, set()).add(float(rounding.inputs[1].const_value.numpy()))
    assert all(len(found) == 1 for found in scales.values())
    shared = sorted(sorted(names) for names in by_input.values() if len(names) > 1)
    qkv = [f"self_attn.{x}_proj.weight" for x in "kqv"]
    gate_up = [f"feed_forward.shared_expert.{x}_proj.weight" for x in ("gate", "up")]
    assert shared == [gate_up, qkv]
    router = next(node for node in graph if node.name == "/layers.0/moe/router/MatMul")
    assert router.inputs[0] is not None and router.inputs[0].producer().op_type != "DequantizeLinear"  # type: ignore[union-attr]


def test_experts_that_no_token_chose_have_scale_one_and_nothing_is_below_2_to_the_minus_14(
    workshop: Workshop, tmp_path: Path
) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.input_layernorm.weight"][:] = 0
    weights["model.layers.2.input_layernorm.weight"][:] = 1e-6
    save_file(weights, checkpoint / "model.safetensors")
    build(checkpoint, tmp_path / "e", options(dtype="fp16"))
    scales = input_scales(tmp_path / "e")
    assert scales["model.layers.1.self_attn.q_proj.weight"] == 1
    assert scales["model.layers.2.self_attn.q_proj.weight"] == 2.0**-14


def test_activations_that_are_not_finite_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("mobile"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.input_layernorm.weight"][:] = 1e38
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(InputError, match="input is not finite on the calibration text"):
        build(checkpoint, tmp_path / "e", options())


# Builds --------------------------------------------------------------------------------------------------------------


def test_the_manifest_tells_and_a_rebuild_takes_the_weights_over(
    workshop: Workshop, tmp_path: Path, ids_file: Path
) -> None:
    checkpoint, notices = workshop.checkpoint("mobile"), []
    first = build(checkpoint, tmp_path / "e", options(activations=None))
    assert first.precision["activations"] == "fp32" and "activations" not in first.options
    build(checkpoint, tmp_path / "e", options(calibrate=ids_file, force=True), on_notice=notices.append)
    manifest = load_manifest(tmp_path / "e")
    assert any("taken over" in notice for notice in notices)
    assert any("calibrating activations: 300 tokens of ids.txt" in notice for notice in notices)
    assert manifest.precision["activations"] == manifest.options["decoder"]["activations"] == "fp8"
    assert manifest.options["decoder"]["activation_calibration"]["tokens"] == 300
    assert "quantize_activations" in manifest.passes
    again = build(checkpoint, tmp_path / "e", options(calibrate=ids_file, force=True), on_notice=notices.append)
    assert again == manifest and "up to date" in notices[-1]


def test_onnxruntime_genai_opens_it(workshop: Workshop, tmp_path: Path) -> None:
    build(workshop.checkpoint("scout"), tmp_path / "e", options())
    prompt = random_ids(40).tolist()
    expected = list(runtimes.load(tmp_path / "e").generate(prompt, max_new_tokens=10, stop_token_ids=()))
    model = og.Model(str(tmp_path / "e"))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=90)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    for token in expected[: [*expected, 241].index(241)]:  # it stops at the model's own stop token
        generator.generate_next_token()
        assert generator.get_next_tokens()[0] == token


def test_the_same_scales_whatever_compiles_the_graph(workshop: Workshop, tmp_path: Path, ids_file: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    checkpoint, changes = workshop.checkpoint("maverick"), {"dtype": "fp16", "calibrate": ids_file, "layers": (0, 2)}
    build(checkpoint, tmp_path / "onnx", options(**changes))
    rtx = {"target": "tensorrt-rtx", "compute_capabilities": ("8.9", "12.0")}
    manifest = build(checkpoint, tmp_path / "rtx", options(**changes, **rtx))
    assert input_scales(tmp_path / "rtx") == input_scales(tmp_path / "onnx") != {}
    assert manifest.files["decoder.engine"].bytes > 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "layout"), COMBINATIONS)
def test_engines_of_every_variant_are_compiled(
    workshop: Workshop, tmp_path: Path, ids_file: Path, variant: str, layout: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    rtx = {"target": "tensorrt-rtx", "compute_capabilities": ("8.9", "12.0", "12.1"), "dtype": "fp16"}
    manifest = build(workshop.checkpoint(variant), tmp_path / "e", options(kv_layout=layout, calibrate=ids_file, **rtx))
    assert manifest.files["decoder.engine"].bytes > 1_000_000


INT4 = Rule(("model.layers.*.experts.*_proj",), "int4")
MIXED = Policy((INT4, Rule(("model.layers.*_proj.weight",), "fp8")))


def test_only_inputs_of_fp8_weights_are_rounded(workshop: Workshop) -> None:
    graph = plan_build(workshop.checkpoint("scout"), options(policy=MIXED)).model.graph
    roundings = [str(node.name) for node in graph.all_nodes() if node.op_type == "QuantizeLinear"]
    assert len(roundings) == 4 * 4 and not any("experts/" in name or "lm_head" in name for name in roundings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "ort-cpu"}, "--target ort-cpu has no FP8 products; use onnx or tensorrt-rtx"),
        ({"policy": None}, "FP8 weights alone; add --quant fp8"),
        ({"policy": standard_policy("int4")}, "FP8 weights alone; add --quant fp8"),
        (
            {"target": "tensorrt-rtx", "compute_capabilities": ("8.9",), "dtype": "bf16"},
            "without bf16; use --dtype fp16",
        ),
        ({"activations": "int8"}, "--activations int8 is not fp8"),
        ({"activations": None, "calibrate": Path("text")}, "--calibrate: weights for --target onnx are rounded"),
        ({"calibrate": Path("nowhere.txt")}, "--calibrate nowhere.txt: no such file"),
        ({"target": "tensorrt-rtx", "compute_capabilities": ("8.0",)}, "8.0 has no fp8; fp8 needs 8.9, 12.0, 12.1"),
    ],
)
def test_what_cannot_be_rounded_is_refused_by_name(
    workshop: Workshop, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        build(workshop.checkpoint("scout"), tmp_path / "e", options(**changes))
    assert list(tmp_path.iterdir()) == []


def test_layer_by_layer_there_is_no_such_reference(workshop: Workshop, tmp_path: Path) -> None:
    build(workshop.checkpoint("mobile"), tmp_path / "e", options())
    with pytest.raises(InputError, match="--stream: the reference rounds no activations"):
        check_layers(tmp_path / "e", workshop.checkpoint("mobile"))
