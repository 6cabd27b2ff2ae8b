"""Engines on l4export's own CPU kernels, against PyTorch and against ONNX Runtime's operators on the same codes."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from l4export import runtimes
from l4export.benchmark.decode_weights import decode_weight_bytes
from l4export.checkpoint import read_config
from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine.manifest import CPU_KERNELS, load_manifest
from l4export.errors import InputError
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.inspection.graph_file import load_graph
from l4export.inspection.taps import TappedInference
from l4export.inspection.weight_bytes import weight_bytes
from l4export.parity.by_layer import check_layers
from l4export.parity.whole_model import check_parity
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.runtimes.cache.host_cache import new_host_cache
from l4export.runtimes.session import Session
from l4export.sizing.engine_size import EngineSizes
from l4export.targets import TARGETS, cpu
from workshop import LAYOUTS, VARIANTS, Workshop, assert_close, copy_checkpoint, random_ids

pytestmark = pytest.mark.usefixtures("cpu_kernels")

MATRICES = ("model.layers.*_proj.weight", "model.layers.*.experts.*_proj")
REST = ("lm_head.weight", "model.embed_tokens.weight")
SCHEMES = {
    "int4": Rule(MATRICES, "int4"),
    "int4 block 16 asymmetric": Rule(MATRICES, "int4", 16, symmetric=False),
    "int8 asymmetric": Rule(MATRICES, "int8", 32, symmetric=False),
    "fp8": Rule(MATRICES, "fp8"),
}


def in_float(rule: Rule, variant: str) -> Policy:
    """A policy whose activations stay float32."""
    rest = REST[1:] if variant == "mobile" else REST
    return Policy((rule, Rule(rest, "int8", symmetric=rule.symmetric)), accuracy_level=1)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_engine_computes_with_its_dequantised_weights(
    workshop: Workshop, tmp_path: Path, variant: str, scheme: str
) -> None:
    checkpoint = workshop.checkpoint(variant)
    for layout in LAYOUTS if scheme == "int4" else ("static",):
        policy = in_float(SCHEMES[scheme], variant)
        options = BuildOptions(target="cpu", kv_layout=layout, max_context=128, policy=policy)
        of_integers = (variant, scheme) != ("mobile", "fp8")  # whose tied embedding is the only one
        assert build(checkpoint, tmp_path / layout, options).requires == ((CPU_KERNELS,) if of_integers else ())
        report = check_parity(tmp_path / layout, checkpoint, 50, 30, dequantized=True)
        assert report.passed, report.failures
        assert report.thresholds["max_relative_difference"] == 1e-4  # float level: activations are not rounded
        assert report.greedy_prefix == 1


def with_onnxruntime(patch: pytest.MonkeyPatch) -> None:
    """The target as it is before its weights are tiled: the same codes, for ONNX Runtime's own operators."""

    def lower(options: cpu.GraphOptions) -> list[ir.passes.InPlacePass]:
        return cpu.fused_operators(options, scale_dtype="float16")

    patch.setitem(TARGETS, "cpu", dataclasses.replace(cpu.CPU, lower=lower))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_tokens_as_by_onnxruntimes_operators(workshop: Workshop, tmp_path: Path, variant: str) -> None:
    options = BuildOptions(target="cpu", max_context=400, policy=in_float(SCHEMES["int4"], variant))
    build(workshop.checkpoint(variant), tmp_path / "ours", options)
    with pytest.MonkeyPatch.context() as patch:
        with_onnxruntime(patch)
        assert build(workshop.checkpoint(variant), tmp_path / "theirs", options).requires == ()
    ours, theirs = (dict(dequantized_weights(tmp_path / name)) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])
    prompt = random_ids(50, seed=1).tolist()
    engines = [runtimes.load(tmp_path / name, threads=1) for name in ("ours", "theirs")]
    texts = [list(engine.generate(prompt, max_new_tokens=300, stop_token_ids=())) for engine in engines]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("variant", ["scout", "scout-top2", "maverick", "mobile"])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_int8_activations_stay_close(workshop: Workshop, tmp_path: Path, quant: str, variant: str) -> None:
    checkpoint = workshop.checkpoint(variant)
    options = BuildOptions(target="cpu", max_context=128, policy=standard_policy(quant))
    build(checkpoint, tmp_path / "e", options)
    report = check_parity(tmp_path / "e", checkpoint, 50, 10, dequantized=True)
    assert report.passed, report.failures
    assert report.thresholds == {"kl_mean": 5e-2}


def test_codes_of_a_checkpoint_are_kept(tmp_path: Path) -> None:
    """Those of W4A16, whose scales are bfloat16: exact in float16 as well."""
    write_sample(tmp_path / "c", "scout", "tiny", seed=3, form="w4a16")
    for target in ("cpu", "ort-cpu"):
        build(tmp_path / "c", tmp_path / target, BuildOptions(target=target, max_context=128))
    ours, theirs = (dict(dequantized_weights(tmp_path / target)) for target in ("cpu", "ort-cpu"))
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])
    report = check_parity(tmp_path / "cpu", tmp_path / "c", 50, 30)
    assert report.passed, report.failures
    assert report.thresholds["max_relative_difference"] == 1e-4


def test_one_operator_a_layer_of_experts(workshop: Workshop) -> None:
    model = plan_build(workshop.checkpoint("scout"), BuildOptions(target="cpu", policy=standard_policy("int4"))).model
    types = [(node.domain, node.op_type) for node in model.graph]
    assert types.count(("l4.cpu", "MoE")) == 4
    assert types.count(("l4.cpu", "Linear")) == 9  # q, k and v of a layer in one, o, and the head
    assert ("l4.cpu", "MLP") not in types and ("", "TopK") not in types
    assert ("com.microsoft", "MatMulNBits") not in types
    (experts,) = (node for node in model.graph if node.name == "/layers.1/moe/experts/MoE")
    prefix = "model.layers.1.feed_forward"
    assert [value and value.name for value in experts.inputs[2:]] == [
        f"{prefix}.experts.gate_up_proj.tiles",
        f"{prefix}.experts.down_proj.tiles",
        f"{prefix}.shared_expert.gate_proj.weight|{prefix}.shared_expert.up_proj.weight.tiles",
        f"{prefix}.shared_expert.down_proj.weight.tiles",
    ]


def test_a_shared_expert_that_is_coded_in_two_ways_stays_beside_the_experts(workshop: Workshop, tmp_path: Path) -> None:
    rules = (
        Rule(("*.experts.*", "*.shared_expert.[gd]*"), "int4"),
        Rule(("*.shared_expert.up_proj.weight",), "int8"),
    )
    options = BuildOptions(target="cpu", max_context=128, policy=Policy(rules, accuracy_level=1))
    build(workshop.checkpoint("scout"), tmp_path / "e", options)
    report = check_parity(tmp_path / "e", workshop.checkpoint("scout"), 50, 10, dequantized=True)
    assert report.passed, report.failures


def test_an_engine_without_quantised_weights_needs_no_kernels(workshop: Workshop, tmp_path: Path) -> None:
    plain = build(workshop.checkpoint("scout"), tmp_path / "e", BuildOptions(target="cpu", max_context=128))
    same = build(workshop.checkpoint("scout"), tmp_path / "o", BuildOptions(target="ort-cpu", max_context=128))
    assert plain.requires == () and plain.files["decoder.onnx"] == same.files["decoder.onnx"]


def test_scales_beyond_float16_are_refused_by_the_weights_name(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.self_attn.o_proj.weight"][3, 4] = 1e6
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.o_proj\.weight.*too large for float16 scales"):
        build(checkpoint, tmp_path / "e", BuildOptions(target="cpu", policy=standard_policy("int4")))


def test_a_tied_embedding_is_stored_once(workshop: Workshop) -> None:
    """So its head stays with ONNX Runtime, which reads the codes that the lookup reads."""
    planned = plan_build(workshop.checkpoint("mobile"), BuildOptions(target="cpu", policy=standard_policy("int8")))
    (head,) = (node for node in planned.model.graph if node.op_type == "MatMulNBits")
    assert head.name == "/lm_head/MatMul"
    found = weight_bytes(planned.model, planned.config)["model.embed_tokens.weight"]
    assert 8 * found / (planned.config.vocab_size * planned.config.hidden_size) == 8 + 16 / 64


def test_both_forms_of_a_graph_read_the_same_bytes_a_token(workshop: Workshop) -> None:
    """Whole tiles have the bytes of their codes and scales, and a shared expert is not among the chosen ones."""
    checkpoint = workshop.checkpoint("scout")
    options = BuildOptions(target="cpu", max_context=128, policy=in_float(SCHEMES["int4"], "scout"))
    ours = plan_build(checkpoint, options)
    with pytest.MonkeyPatch.context() as patch:
        with_onnxruntime(patch)
        theirs = plan_build(checkpoint, options)
    read = [decode_weight_bytes(planned.model, planned.config) for planned in (ours, theirs)]
    assert read[0] == read[1]
    stored = [weight_bytes(planned.model, planned.config) for planned in (ours, theirs)]
    assert stored[0] == stored[1]


@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("variant", ["scout", "maverick", "mobile"])
def test_sizes_are_known_without_weights(workshop: Workshop, variant: str, quant: str) -> None:
    checkpoint = workshop.checkpoint(variant)
    planned = plan_build(checkpoint, BuildOptions(target="cpu", max_context=250, policy=standard_policy(quant)))
    size = EngineSizes(read_config(checkpoint), "cpu").size(quant, "fp32", "static", "fp32", 250)
    assert size.data == sum(planned.data_files.values())


@pytest.mark.parametrize("variant", ["scout-top2", "maverick"])
def test_every_layer_agrees(workshop: Workshop, tmp_path: Path, variant: str) -> None:
    """By taps, whose session has the kernels, too."""
    options = BuildOptions(target="cpu", max_context=128, policy=in_float(SCHEMES["int4"], variant))
    build(workshop.checkpoint(variant), tmp_path / "e", options)
    report = check_layers(tmp_path / "e", workshop.checkpoint(variant), 50, 30, dequantized=True)
    assert report.passed, report.failures
    assert max(item.hidden for item in report.layers) < 1e-5


def test_codes_that_a_calibration_finds_go_into_tiles(workshop: Workshop, tmp_path: Path) -> None:
    (ids := tmp_path / "ids").write_text(" ".join(map(str, random_ids(600, seed=4))))
    options = BuildOptions(target="cpu", max_context=128, policy=in_float(SCHEMES["int4"], "scout"), calibrate=ids)
    build(workshop.checkpoint("scout"), tmp_path / "e", options)
    report = check_parity(tmp_path / "e", workshop.checkpoint("scout"), 50, 10, dequantized=True)
    assert report.passed, report.failures
    assert report.thresholds["max_relative_difference"] == 1e-4


def test_another_cache_takes_the_weights_over(workshop: Workshop, tmp_path: Path) -> None:
    """The unfinished engine measures scales of its cache with the kernels."""
    (ids := tmp_path / "ids").write_text(" ".join(map(str, random_ids(200, seed=4))))
    options = BuildOptions(target="cpu", max_context=128, policy=standard_policy("int4"))
    narrow = dataclasses.replace(options, kv_dtype="int8", kv_calibrate=ids, force=True)
    build(workshop.checkpoint("scout"), tmp_path / "e", options)
    told: list[str] = []
    build(workshop.checkpoint("scout"), tmp_path / "e", narrow, on_notice=told.append)
    assert any("the weights have not changed" in line for line in told)
    build(workshop.checkpoint("scout"), tmp_path / "anew", narrow)
    assert load_manifest(tmp_path / "e").files == load_manifest(tmp_path / "anew").files


def test_a_tower_in_fewer_bits(tmp_path: Path) -> None:
    write_sample(tmp_path / "c", "scout", "tiny", seed=3, vision=True)
    rule = Rule(("vision_model.model.layers.*_proj.weight", "vision_model.*.fc?.weight"), "int8")
    policy = Policy((rule,), accuracy_level=1)
    for target in ("cpu", "ort-cpu"):
        build(tmp_path / "c", tmp_path / target, BuildOptions(target=target, max_context=64, policy=policy))
    ours, theirs = (runtimes.load(tmp_path / target, threads=1) for target in ("cpu", "ort-cpu"))
    assert ours.manifest.requires == (CPU_KERNELS, "vision")
    tiles = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    # scales of one have 11 bits and of the other 24: weights move by 2^-12 of themselves, and codes of 8 bits with them
    assert_close(ours.image_features(tiles), theirs.image_features(tiles), 2e-2)


def test_a_product_has_the_same_bits_however_a_prompt_is_cut(workshop: Workshop, tmp_path: Path) -> None:
    """The first product of the first layer, behind an embedding and a norm. What follows on attention has not: ONNX
    Runtime's adds up in another order for other cuts."""
    options = BuildOptions(target="cpu", max_context=128, policy=standard_policy("int4"))
    build(workshop.checkpoint("scout"), tmp_path / "e", options)
    manifest, ids = load_manifest(tmp_path / "e"), random_ids(48)
    found = []
    for pieces in ([48], [5, 16, 1, 1, 25], [1] * 48):
        taps = ["/layers.0/attn/q_proj/MatMul", "/layers.0/attn/v_proj/MatMul"]
        inference = TappedInference(tmp_path / "e", load_graph(tmp_path / "e", manifest), taps)
        session = Session(partial(new_host_cache, inference), manifest, 1, 48)
        for end, count in zip(np.cumsum(pieces), pieces, strict=True):
            session.append(ids[end - count : end])
        found.append(np.concatenate([inference.taken(name).reshape(48, -1) for name in taps], axis=1))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
