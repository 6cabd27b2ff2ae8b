"""Layer by layer, a healthy engine passes everywhere, and a wrong one is caught where it goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest
from l4export.errors import CheckFailed, InputError
from l4export.parity.by_layer import check_layers
from l4export.quantization.policy import Policy, Rule, standard_policy
from workshop import LAYOUTS, VARIANTS, Workshop, copy_checkpoint

MATRICES = ("model.layers.*_proj.weight", "model.layers.*.experts.*_proj")
variants = pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.xdist_group(v)) for v in VARIANTS])


@variants
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layer_of_an_engine_agrees(workshop: Workshop, variant: str, layout: str) -> None:
    engine = workshop.engine_path(variant, layout)
    report = check_layers(engine, workshop.checkpoint(variant), 50, 30)
    assert report.passed, report.failures
    kinds = [layer.kind for layer in load_manifest(engine).kv_layers]
    assert [item.layer for item in report.layers] == [0, 1, 2, 3]
    for item in report.layers:
        cached = [item.keys, item.values]
        dropped = layout == "chunked" and kinds[item.layer] == "chunked"  # the keys of earlier chunks are gone
        assert cached == [None, None] if dropped else None not in cached
        assert max(item.hidden, item.hidden_rms, *(value for value in cached if value is not None)) < 1e-5
    routed = [item.layer for item in report.layers if item.expert_agreement == 1]
    assert routed == {"scout": [0, 1, 2, 3], "maverick": [1, 3]}.get(variant.removesuffix("-top2"), [])
    assert report.chunk_boundaries == (0 if variant == "guard" else 4)


def broken(workshop: Workshop, variant: str, name: str, path: Path, options: BuildOptions) -> Path:
    """An engine that was given one wrong tensor."""
    other = copy_checkpoint(workshop.checkpoint(variant), path / "c")
    weights = load_file(other / "model.safetensors")
    weights[name] = np.ascontiguousarray(weights[name][..., ::-1])
    save_file(weights, other / "model.safetensors")
    build(other, path / "e", options)
    return path / "e"


@pytest.mark.parametrize(
    ("variant", "tensor"),
    [
        ("scout", "self_attn.k_proj.weight"),
        ("scout", "self_attn.o_proj.weight"),
        ("scout", "feed_forward.router.weight"),
        ("scout", "feed_forward.experts.down_proj"),
        ("maverick", "feed_forward.up_proj.weight"),
        ("mobile", "input_layernorm.weight"),
    ],
)
def test_the_third_layer_with_one_wrong_tensor_is_named(
    workshop: Workshop, tmp_path: Path, variant: str, tensor: str
) -> None:
    engine = broken(workshop, variant, f"model.layers.2.{tensor}", tmp_path, BuildOptions(max_context=64))
    report = check_layers(engine, workshop.checkpoint(variant), 30, 4)
    assert report.first_departure == 2
    assert "layer 2 is the first to depart" in report.failures[0]
    assert all(item.hidden < 1e-5 for item in report.layers[:2])


def test_an_engine_that_overflows_is_caught_where_it_begins(workshop: Workshop, tmp_path: Path) -> None:
    other = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.2.self_attn.o_proj.weight"][0, 0] = 3e38
    save_file(weights, other / "model.safetensors")
    build(other, tmp_path / "e", BuildOptions(max_context=64))
    with pytest.raises(CheckFailed, match="layer 2 is the first to depart"):
        check_layers(tmp_path / "e", workshop.checkpoint("scout"), 30, 4)


def test_a_slice_is_numbered_as_the_checkpoint_is(workshop: Workshop, tmp_path: Path) -> None:
    options = BuildOptions(layers=(1, 4), max_context=64)
    engine = broken(workshop, "maverick", "model.layers.2.self_attn.v_proj.weight", tmp_path, options)
    report = check_layers(engine, workshop.checkpoint("maverick"), 30, 4)
    assert [item.layer for item in report.layers] == [1, 2, 3]
    assert report.first_departure == 2
    healthy = check_layers(engine, tmp_path / "c", 30, 4)
    assert healthy.passed, healthy.failures


def test_a_quantised_engine_against_its_own_weights(workshop: Workshop, tmp_path: Path) -> None:
    rules = (Rule(MATRICES, "int4", 16, symmetric=False), Rule(("lm_head.weight", "model.embed_tokens.weight"), "int8"))
    build(workshop.checkpoint("scout"), tmp_path / "e", BuildOptions(max_context=64, policy=Policy(rules, 1)))
    report = check_layers(tmp_path / "e", workshop.checkpoint("scout"), 30, 4, dequantized=True)
    assert report.passed, report.failures
    assert report.thresholds["max_relative_difference"] == 1e-4
    against_float = check_layers(tmp_path / "e", workshop.checkpoint("scout"), 30, 4)
    assert against_float.verdict == "not judged"  # nothing is demanded of its quality, but it is told
    assert against_float.layers[3].hidden_rms > 100 * report.layers[3].hidden_rms


def test_standard_operators_keep_activations_as_they_are(workshop: Workshop, tmp_path: Path) -> None:
    """ONNX Runtime may fuse DequantizeLinear and MatMul, and would then round activations to int8."""
    policy = Policy((Rule(("lm_head.weight",), "int8", 64),))  # one scale a row, a form that is fused
    build(workshop.checkpoint("scout"), tmp_path / "e", BuildOptions(target="onnx", max_context=64, policy=policy))
    report = check_layers(tmp_path / "e", workshop.checkpoint("scout"), 30, 4, dequantized=True)
    assert report.passed, report.failures


def test_int8_activations_are_reported(workshop: Workshop, tmp_path: Path) -> None:
    build(workshop.checkpoint("scout"), tmp_path / "e", BuildOptions(max_context=64, policy=standard_policy("int4")))
    report = check_layers(tmp_path / "e", workshop.checkpoint("scout"), 30, 4, dequantized=True)
    assert 1e-4 < report.layers[0].hidden_rms < 0.05


def test_the_report_is_json(workshop: Workshop) -> None:
    report = check_layers(workshop.engine_path("scout", "static"), workshop.checkpoint("scout"), 20, 4)
    told = json.loads(report.to_json())
    assert (told["verdict"], told["first_departure"], len(told["layers"])) == ("passed", None, 4)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"prefill": 300}, "max_context"),
        ({"thresholds": {"greedy_prefix": 1.0}}, "greedy_prefix"),
        ({"thresholds": {"nonsense": 1.0}}, "nonsense"),
        ({"checkpoint": "mobile"}, "another model"),
    ],
)
def test_what_cannot_be_compared_is_refused(workshop: Workshop, change: dict, word: str) -> None:  # type: ignore[type-arg]
    checkpoint = workshop.checkpoint(change.pop("checkpoint", "scout"))
    with pytest.raises(InputError, match=word):
        check_layers(workshop.engine_path("scout", "static"), checkpoint, **{"prefill": 20, "decode": 4, **change})
