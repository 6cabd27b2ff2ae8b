"""Quantised engines compute exactly what their own weights say, and their weights are what the definition says."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from l4export import runtimes
from l4export.checkpoint import SourceTensor
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.errors import InputError
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.parity.thresholds import Demands
from l4export.parity.whole_model import check_parity
from l4export.quantization import Scheme, dequantize
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.quantization.weights import QuantizedWeight
from l4export.reference.transformers_model import HFReference
from l4export.storage.safetensors import TensorFile
from l4export.weights.recipes import Cast, Interleave, Slice, Source, Transpose, whole
from tiny_graphs import source
from workshop import LAYOUTS, Workshop, assert_close, copy_checkpoint, random_ids

MATRICES = ("model.layers.*_proj.weight", "model.layers.*.experts.*_proj")
REST = ("lm_head.weight", "model.embed_tokens.weight")
SCHEMES = {
    "int4": Rule(MATRICES, "int4"),
    "int4 block 16 asymmetric": Rule(MATRICES, "int4", 16, symmetric=False),
    "fp8": Rule(MATRICES, "fp8"),
    "fp8 square": Rule(MATRICES, "fp8", 128),
}


def exact(rule: Rule, variant: str) -> Policy:
    """A policy whose activations stay float32."""
    rest = REST[1:] if variant == "mobile" else REST
    return Policy((rule, Rule(rest, "int8", symmetric=rule.symmetric)), accuracy_level=1)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("variant", ["scout", "maverick", "mobile", "scout-top2"])
def test_an_engine_computes_with_its_dequantised_weights(
    workshop: Workshop, tmp_path: Path, variant: str, scheme: str
) -> None:
    checkpoint = workshop.checkpoint(variant)
    for layout in LAYOUTS if scheme == "int4" else ("static",):
        options = BuildOptions(kv_layout=layout, max_context=128, policy=exact(SCHEMES[scheme], variant))
        build(checkpoint, tmp_path / layout, options)
        report = check_parity(tmp_path / layout, checkpoint, 50, 30, dequantized=True)
        assert report.passed, report.failures
        assert report.thresholds["max_relative_difference"] == 1e-4  # float level: activations are not quantised
        assert report.greedy_prefix == 1


@pytest.mark.parametrize("options", [{"dtype": "fp16"}, {"kv_dtype": "fp16"}, {}])
def test_rounded_activations_are_judged_as_such_in_every_float_type(
    workshop: Workshop, tmp_path: Path, options: dict[str, str]
) -> None:
    made = {"int4": standard_policy("int4"), "fp8": standard_policy("fp8")}
    demanded = {}
    for quant, policy in made.items():
        manifest = build(workshop.checkpoint("scout"), tmp_path / quant, BuildOptions(policy=policy, **options))  # type: ignore[arg-type]
        demanded[quant] = Demands.of(manifest, {}, 50, 4, dequantized=True).thresholds
    assert demanded["int4"] == {"kl_mean": 5e-2}
    assert demanded["fp8"]["max_relative_difference"] == (3e-2 if options else 1e-4)


@pytest.mark.parametrize("target", ["ort-cpu", "onnx"])
def test_fitted_scales_bring_weights_nearer(workshop: Workshop, tmp_path: Path, target: str) -> None:
    checkpoint = workshop.checkpoint("scout")
    reference = load_file(checkpoint / "model.safetensors")
    errors: list[dict[str, float]] = []
    for name, fitted in (("plain", False), ("fitted", True)):
        policy = Policy((Rule(MATRICES, "int4", 32, fitted=fitted),), accuracy_level=1)
        build(checkpoint, tmp_path / name, BuildOptions(target=target, max_context=128, policy=policy))
        away = {of: value - reference[of].astype(np.float32) for of, value in dequantized_weights(tmp_path / name)}
        errors.append({of: float(np.square(values).mean()) for of, values in away.items()})
    assert all(errors[1][weight] < errors[0][weight] for weight in errors[0])
    report = check_parity(tmp_path / "fitted", checkpoint, 50, 4, dequantized=True)
    assert report.passed, report.failures


@pytest.mark.parametrize("variant", ["scout", "maverick"])
@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_int8_activations_stay_close(
    workshop: Workshop, tmp_path: Path, quant: str, kv_dtype: str, variant: str
) -> None:
    """With a cache in float16 too: what is demanded is what rounded activations allow, not what float16 would."""
    checkpoint = workshop.checkpoint(variant)
    options = BuildOptions(max_context=128, policy=standard_policy(quant), kv_dtype=kv_dtype)
    build(checkpoint, tmp_path / "e", options)
    report = check_parity(tmp_path / "e", checkpoint, 50, 10, dequantized=True)
    assert report.passed, report.failures


def test_the_dequantised_weights_follow_from_the_checkpoint(workshop: Workshop, tmp_path: Path) -> None:
    """Names and layouts as in the checkpoint, each value within a step of the original: half a step by
    rounding, and up to a whole one where the extreme of the other sign has no code."""
    checkpoint = workshop.checkpoint("scout")
    build(checkpoint, tmp_path / "e", BuildOptions(policy=exact(Rule(MATRICES, "int8", 16), "scout")))
    weights = load_file(checkpoint / "model.safetensors")
    found = dict(dequantized_weights(tmp_path / "e"))
    assert set(weights) - set(found) == {name for name in weights if "norm" in name or "router" in name}
    for name, values in found.items():
        assert values.shape == weights[name].shape
        assert np.abs(values - weights[name]).max() <= np.abs(weights[name]).max() / 128 * 1.01
    e, d, i = 1, 5, 3  # one expert's element, found through blocks of 16 along the input axis d
    original = weights["model.layers.2.feed_forward.experts.gate_up_proj"][e, :16, i]
    extreme = original[np.abs(original).argmax()]
    scale = extreme / np.float32(-128)
    code = np.clip(np.rint(original[d] * (np.float32(1) / scale)), -128, 127)
    assert found["model.layers.2.feed_forward.experts.gate_up_proj"][e, d, i] == np.float32(code) * scale


def test_tied_embeddings_are_stored_once(workshop: Workshop, tmp_path: Path) -> None:
    planned = plan_build(workshop.checkpoint("mobile"), BuildOptions(policy=standard_policy("int8")))
    codes = [name for name in planned.model.graph.initializers if name.startswith("model.embed_tokens.weight.codes")]
    assert len(codes) == 2
    places = [
        placed.offset
        for file in planned.graph.files
        for placed in file.placements
        if str(placed.values[0].name) in codes
    ]
    assert len(places) == 1


def test_operators_of_a_standard_int4_engine(workshop: Workshop) -> None:
    planned = plan_build(workshop.checkpoint("maverick"), BuildOptions(policy=standard_policy("int4")))
    types = [node.op_type for node in planned.model.graph]
    assert (types.count("MatMulNBits"), types.count("QMoE"), types.count("GatherBlockQuantized")) == (17, 2, 1)
    assert types.count("Split") == 8  # q, k, v, and gate and up, of each of four layers are multiplied together
    assert types.count("FusedMatMul") == 2  # the routers
    assert "quantize_weights_for_onnxruntime" in planned.passes


@pytest.mark.parametrize("quant", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("variant", ["scout", "mobile"])
def test_float16_engines_can_be_quantised(workshop: Workshop, tmp_path: Path, variant: str, quant: str) -> None:
    """Scales are float16 then. Half precision and, for integers, int8 activations: close, not at float level."""
    checkpoint = workshop.checkpoint(variant)
    build(checkpoint, tmp_path / "e", BuildOptions(dtype="fp16", max_context=64, policy=standard_policy(quant)))
    ids = random_ids(40)
    reference = HFReference(checkpoint)
    reference.replace(dequantized_weights(tmp_path / "e"))
    expected = reference.logits(ids[None])[0]
    got = runtimes.load(tmp_path / "e").session().append(ids)[0]
    # the median position: a router's near tie may choose another expert
    assert np.median(np.abs(got - expected).max(axis=1)) <= 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("jobs", [1, 3])
def test_bytes_do_not_depend_on_jobs_or_budget(workshop: Workshop, tmp_path: Path, jobs: int) -> None:
    checkpoint = workshop.checkpoint("scout")
    policy = standard_policy("int4")
    first = build(checkpoint, tmp_path / "a", BuildOptions(policy=policy))
    again = build(checkpoint, tmp_path / "b", BuildOptions(policy=policy, jobs=jobs, memory_budget=64 << 20))
    assert first.files == again.files


class TestQuantizedWeight:
    """An evaluation, by regions, against quantising the whole matrix."""

    def experts(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((3, 64, 40)).astype(ml_dtypes.bfloat16)

    def fused(self, stored: Source) -> Interleave:
        """[E, D, 2I] -> [E, 2I, D] with gate and up rows in turn, cast as a float engine would."""
        recipe = Cast(stored, ir.DataType.FLOAT)
        width = stored.dims[2] // 2
        halves = [Slice(recipe, 2, start, start + width) for start in (0, width)]
        return Interleave([Transpose(half, (0, 2, 1)) for half in halves], axis=1)

    @pytest.mark.parametrize("scheme", [Scheme("int4", 32), Scheme("int8", 16, False), Scheme("fp8", 0)])
    @pytest.mark.parametrize("region", [(0, 3, 0, 40), (1, 2, 5, 9), (0, 2, 7, 40), (2, 3, 3, 4)])
    def test_regions_are_parts_of_the_whole(self, scheme: Scheme, region: tuple[int, ...]) -> None:
        stored = self.experts()
        weight = QuantizedWeight(self.fused(source(stored)), scheme)
        e0, e1, n0, n1 = region
        everything = weight.evaluate(whole(weight.lead))
        part = weight.evaluate((slice(e0, e1), slice(n0, n1)))
        for got, all_of_it in zip(part, everything, strict=True):
            np.testing.assert_array_equal(got.view(np.uint8), all_of_it[e0:e1, n0:n1].view(np.uint8))

    def test_values_are_those_of_the_float_recipe_up_to_half_a_step(self) -> None:
        recipe = self.fused(source(self.experts()))
        weight = QuantizedWeight(recipe, Scheme("int8", 32))
        codes, scales = weight.evaluate(whole(weight.lead))
        for expert in range(3):
            values = dequantize(codes[expert], scales[expert], None, Scheme("int8", 32))
            step = np.abs(scales[expert]).repeat(32, axis=1)
            assert (np.abs(values - recipe.numpy()[expert]) <= step * 0.501 + step * (values < 0)).all()

    @pytest.mark.parametrize("piece", [8, 4000, 32 << 20])
    @pytest.mark.parametrize("scheme", [Scheme("int4", 16, False), Scheme("int8", 32), Scheme("fp8", 0)])
    def test_a_mapped_file_gives_the_same_in_pieces_of_any_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, scheme: Scheme
    ) -> None:
        stored = self.experts()
        tensors = {"odd": np.ones(3, np.int8), "x": stored}
        offsets = {"odd": [0, 3], "x": [3, 3 + stored.nbytes]}  # not aligned
        names = {"odd": "I8", "x": "BF16"}
        header = json.dumps(
            {n: {"dtype": names[n], "shape": t.shape, "data_offsets": offsets[n]} for n, t in tensors.items()}
        ).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"".join(t.tobytes() for t in tensors.values()))
        monkeypatch.setattr("l4export.checkpoint.source_tensor._PIECE", piece)
        file = TensorFile(path)
        mapped = Source(SourceTensor(file.entries["x"], file))
        weight = QuantizedWeight(self.fused(mapped), scheme)
        expected = QuantizedWeight(self.fused(source(stored)), scheme)
        for got, wanted in zip(weight.evaluate(whole(weight.lead)), expected.evaluate(whole(weight.lead)), strict=True):
            np.testing.assert_array_equal(got.view(np.uint8), wanted.view(np.uint8))

    def test_codes_in_another_shape_are_the_same_bytes(self) -> None:
        weight = QuantizedWeight(
            source(np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)), Scheme("int4", 32)
        )
        assert weight.codes_as(6, 2, 16).tobytes() == weight.codes.tobytes()

    def test_a_number_that_is_not_finite_is_named(self, workshop: Workshop, tmp_path: Path) -> None:
        checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
        weights = load_file(checkpoint / "model.safetensors")
        weights["model.layers.1.feed_forward.experts.gate_up_proj"][2, 3, 4] = np.nan
        save_file(weights, checkpoint / "model.safetensors")
        with pytest.raises(InputError, match=r"model\.layers\.1\.feed_forward\.experts\.gate_up_proj.*\[2, 3, 4\]"):
            build(checkpoint, tmp_path / "e", BuildOptions(policy=standard_policy("int4")))


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        (Policy((Rule(("nothing.*",), "int4"),)), "names no weight"),
        (Policy((Rule(MATRICES, "int4"), Rule(("*norm.weight",), "int8"))), "names no weight .* that can be quantised"),
        (Policy((Rule(MATRICES, "int4", 128),)), "block size 128 does not divide its width of 64"),
        (Policy((Rule(("*.experts.gate_up_proj",), "int4"),)), "one scheme for both"),
        (Policy((Rule(MATRICES, "int4"), Rule(("*.q_proj.weight",), "int8"))), "contradicts itself"),
    ],
)
def test_policies_that_cannot_be_followed(workshop: Workshop, tmp_path: Path, policy: Policy, word: str) -> None:
    with pytest.raises(InputError, match=word):
        build(workshop.checkpoint("scout"), tmp_path / "e", BuildOptions(policy=policy))
    assert list(tmp_path.iterdir()) == []


def test_a_slice_of_layers_can_be_quantised(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = workshop.checkpoint("maverick")
    options = BuildOptions(layers=(1, 3), max_context=64, policy=exact(SCHEMES["int4"], "maverick"))
    build(checkpoint, tmp_path / "e", options)
    ids = random_ids(40)
    reference = HFReference(checkpoint, (1, 3))
    reference.replace(dequantized_weights(tmp_path / "e"))
    assert_close(runtimes.load(tmp_path / "e").session().append(ids)[0], reference.logits(ids[None])[0])
