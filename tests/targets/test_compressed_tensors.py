"""A checkpoint for other programs: its tensors, its config.json, and the policies that loaders cannot follow."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from adapters import pair, write_adapter
from safetensors import safe_open
from safetensors.numpy import load_file
from written_checkpoints import (
    ATTENTION,
    EXPERTS,
    MATRICES,
    TARGET,
    bfloat16_sample,
    meta_sample,
    policy,
    rounded,
    write,
)

from l4export.checkpoint import open_checkpoint
from l4export.compiler.build import build
from l4export.compiler.checkpoint_plan import plan_checkpoint
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.inspection.dequantized_weights import DequantizedWeights
from l4export.model.tensors import tensors, vision_tensors
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.storage.safetensors import TensorFile
from l4export.targets.compressed_tensors import shards
from quantised_checkpoints import Linears, load, quantised
from workshop import Workshop, edit_config, random_ids

KINDS = ("int4", "int8", "fp8")
BF16 = ml_dtypes.bfloat16
OUTPUT = "model.layers.*.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def scout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bfloat16_sample(tmp_path_factory.mktemp("bf16") / "scout", "scout")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bfloat16_sample(tmp_path_factory.mktemp("bf16") / "maverick", "maverick", vision=True)


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.json"
    path.write_text(json.dumps(random_ids((6, 200), seed=9).tolist()))
    return path


def told(path: Path) -> dict[str, Any]:
    """What config.json says of quantisation."""
    raw: dict[str, Any] = json.loads((path / "config.json").read_text())["quantization_config"]
    return raw


def weights_of(path: Path) -> dict[str, np.ndarray]:
    """Every weight of the inventory, as this package reads the checkpoint."""
    checkpoint = open_checkpoint(path)
    found = {name: checkpoint.tensor(name, shape) for name, shape in tensors(checkpoint.config).items()}
    checkpoint.check_all_known({part.name.removeprefix(checkpoint.prefix) for w in found.values() for part in w.parts})
    return {name: weight.read() for name, weight in found.items()}


def is_quantised(name: str) -> bool:
    """Whether a weight of the inventory is by `policy`."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in MATRICES)


def as_defined(name: str, weight: np.ndarray, kind: str, scale_dtype: Any) -> np.ndarray:
    """A weight of the inventory as it should come back."""
    if not is_quantised(name):
        return weight
    if weight.ndim == 2:
        return rounded(weight, kind, 32, scale_dtype)
    return np.stack([rounded(expert.T, kind, 32, scale_dtype).T for expert in weight])


# Tensors


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_the_definition_bit_for_bit(scout: Path, tmp_path: Path, kind: str) -> None:
    found, plain = weights_of(write(scout, tmp_path / "out", policy(kind))), weights_of(scout)
    for name, values in found.items():
        np.testing.assert_array_equal(values, as_defined(name, plain[name], kind, BF16), err_msg=name)
        assert values.dtype == (np.float32 if is_quantised(name) else BF16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_multimodal_checkpoint_keeps_its_tower(seeing: Path, tmp_path: Path, kind: str) -> None:
    out = write(seeing, tmp_path / "out", policy(kind))
    found, plain = weights_of(out), weights_of(seeing)
    for name, values in found.items():
        np.testing.assert_array_equal(values, as_defined(name, plain[name], kind, BF16), err_msg=name)
    before, after = open_checkpoint(seeing), open_checkpoint(out)
    for name, shape in vision_tensors(before.vision_config(), before.config.hidden_size).items():
        ours = after.vision_tensor(name, shape)
        assert ours.dtype == BF16
        np.testing.assert_array_equal(ours.read(), before.vision_tensor(name, shape).read())
    assert "re:.*vision_model.*" in told(out)["ignore"]


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_an_engine_of_the_same_scheme(workshop: Workshop, tmp_path: Path, kind: str) -> None:
    """Both have positive scales; of a float32 model they are float32 in both."""
    checkpoint = workshop.checkpoint("maverick")
    build(checkpoint, tmp_path / "engine", BuildOptions(target="onnx", policy=policy(kind), max_context=64))
    engine = DequantizedWeights(tmp_path / "engine")
    for name, values in weights_of(write(checkpoint, tmp_path / "out", policy(kind))).items():
        theirs = engine.rows(name, slice(None))
        assert values.dtype == np.float32 and (theirs is not None) == is_quantised(name)
        if theirs is not None:
            np.testing.assert_array_equal(values, theirs, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "names"), [("int4", "packed scale shape"), ("int8", "packed scale shape"), ("fp8", "")]
)
def test_names_dtypes_and_shapes(scout: Path, tmp_path: Path, kind: str, names: str) -> None:
    file = TensorFile(write(scout, tmp_path / "out", policy(kind)) / "model.safetensors")
    entries = {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()}
    expert = "model.layers.1.feed_forward.experts.3.down_proj"  # [64, 32]
    here = {name.removeprefix(f"{expert}."): entry for name, entry in entries.items() if name.startswith(expert)}
    if kind == "fp8":
        assert here == {"weight": ("F8_E4M3", (64, 32)), "weight_scale": ("BF16", (64, 1))}
    else:
        width = 32 * (4 if kind == "int4" else 8) // 32
        assert list(here) == ["weight_shape", "weight_packed", "weight_scale"]
        assert here["weight_packed"] == ("I32", (64, width)) and here["weight_scale"] == ("BF16", (64, 1))
        assert file.array(file.entries[f"{expert}.weight_shape"]).tolist() == [64, 32]
    assert entries["lm_head.weight"] == entries["model.embed_tokens.weight"] == ("BF16", (256, 64))
    assert not any("gate_up_proj" in name for name in entries)
    scales = [name for name in entries if name.endswith("scale")]
    assert all((file.array(file.entries[name]).astype(np.float32) > 0).all() for name in scales)
    assert all(entry.start % np.dtype(file.array(entry).dtype).itemsize == 0 for entry in file.entries.values())


def test_experts_that_stay_float_are_taken_apart_too(scout: Path, tmp_path: Path) -> None:
    out = write(scout, tmp_path / "out", Policy((Rule((ATTENTION,), "int4", 32),)))
    found = load_file(scout / "model.safetensors")["model.layers.2.feed_forward.experts.gate_up_proj"]
    with safe_open(out / "model.safetensors", "numpy") as file:
        up = file.get_tensor("model.layers.2.feed_forward.experts.1.up_proj.weight")
    np.testing.assert_array_equal(up, found[1, :, 32:].T)
    assert r"re:.*\blayers\.\d+\.feed_forward\.experts\..*" in told(out)["ignore"]
    np.testing.assert_array_equal(weights_of(out)["model.layers.2.feed_forward.experts.gate_up_proj"], found)


def test_large_checkpoints_are_cut_into_shards(scout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights_of(write(scout, tmp_path / "whole"))
    monkeypatch.setattr(shards, "_SHARD_BYTES", 60_000)
    out = write(scout, tmp_path / "out")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert (
        files
        == [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
        == sorted({*index["weight_map"].values()})
    )
    assert all((out / name).stat().st_size < 90_000 for name in files)
    stored = [entry for name in files for entry in TensorFile(out / name).entries.values()]
    assert index["metadata"]["total_size"] == sum(entry.stop - entry.start for entry in stored)
    for name, values in weights_of(out).items():
        np.testing.assert_array_equal(values, whole[name])


def test_tied_embeddings_have_no_head(workshop: Workshop, tmp_path: Path) -> None:
    out = write(workshop.checkpoint("mobile"), tmp_path / "out", policy("int8"))
    assert "lm_head.weight" not in TensorFile(out / "model.safetensors").entries
    assert open_checkpoint(out).config.tie_word_embeddings


# From other checkpoints


@pytest.mark.parametrize(
    ("form", "policy"),
    [
        (Linears(packed=True, bits=4, strategy="group"), None),
        (Linears(packed=True, bits=4, strategy="group"), Policy((Rule((EXPERTS,), "int4"),))),
        (Linears(packed=True, bits=8, strategy="group"), None),
        (Linears(is_float=True), None),
    ],
)
def test_codes_and_scales_are_kept(scout: Path, tmp_path: Path, form: Linears, policy: Policy | None) -> None:
    """Byte for byte, under the same names; what quantised it need not be asked for again."""
    source, _ = quantised(scout, tmp_path / "source", form)
    build(source, tmp_path / "out", BuildOptions(target="compressed-tensors", policy=policy))
    stored, found = load(source), load(tmp_path / "out")
    assert stored.keys() == found.keys()
    for name, values in stored.items():
        if "feed_forward" in name and "router" not in name:
            assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
            assert found[name].tobytes() == values.tobytes(), name
    codes = json.loads(out_manifest(tmp_path / "out").read_text())["options"]["weights"]["stored_codes"]
    assert [each["outcome"] for each in codes] == ["kept"]


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Linears(packed=True, bits=4, strategy="group", symmetric=False), "does not take int4 with zero points"),
        (
            Linears(is_float=True, strategy="block", block=(24, 16)),
            "no operator of --target compressed-tensors has such codes",
        ),
        (Linears(is_float=True, scale_dtype=np.float32), "scales in float32 would be rounded to bfloat16"),
    ],
)
def test_what_cannot_be_kept(scout: Path, tmp_path: Path, form: Linears, reason: str) -> None:
    source, _ = quantised(scout, tmp_path / "source", form)
    with pytest.raises(InputError, match="nothing is quantised; add --quant"):
        plan_checkpoint(source, BuildOptions(target="compressed-tensors"))
    asked = BuildOptions(target="compressed-tensors", policy=Policy((Rule((OUTPUT,), "int8", 32),)))
    told = plan_checkpoint(source, asked).stored_codes
    assert {codes.outcome for codes in told} == {"dequantized"} and all(reason in codes.reason for codes in told)


def test_a_quantised_checkpoint_is_written_again_in_another_kind(scout: Path, tmp_path: Path) -> None:
    """Experts in 8 bits instead of 4; the shared expert keeps its codes."""
    form = Linears(packed=True, bits=4, strategy="group")
    source, plain = quantised(scout, tmp_path / "w4a16", form)
    out = write(source, tmp_path / "out", Policy((Rule((OUTPUT, EXPERTS), "int8", 32),)))
    found, expected = weights_of(out), load_file(plain / "model.safetensors")
    for name, values in found.items():
        if "o_proj" in name or ".experts." in name:
            np.testing.assert_array_equal(values, as_defined(name, expected[name], "int8", BF16))
        elif "shared_expert" in name:
            np.testing.assert_array_equal(values, expected[name])
        else:
            np.testing.assert_array_equal(values, expected[name].astype(BF16))
    assert [group["weights"]["num_bits"] for group in told(out)["config_groups"].values()] == [4, 8]
    codes = json.loads(out_manifest(out).read_text())["options"]["weights"]["stored_codes"]
    assert {(each["outcome"], each["stored"]) for each in codes} == {
        ("quantized again", "INT4, groups of 32"), ("kept", "INT4, groups of 32"),
    }  # fmt: skip


def test_metas_own_layout_becomes_the_same_checkpoint(tmp_path: Path) -> None:
    """Name by name, with a config.json that is made from params.json and has a dtype."""
    plain, meta = meta_sample(tmp_path)
    files = [TensorFile(write(path, tmp_path / f"{path.name}-out") / "model.safetensors") for path in (plain, meta)]
    assert files[0].entries == files[1].entries
    for entry in files[0].entries.values():
        np.testing.assert_array_equal(files[0].array(entry), files[1].array(entry), err_msg=entry.name)
    raw = json.loads((tmp_path / "meta-out" / "config.json").read_text())
    assert raw["architectures"] == ["Llama4ForConditionalGeneration"] and raw["torch_dtype"] == "bfloat16"


def test_adapters_are_merged_first(scout: Path, tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.o_proj"
    adapter = write_adapter(tmp_path / "adapter", pair(module, 64, 64), target_modules=["o_proj"])
    found = weights_of(write(scout, tmp_path / "out", adapters=(adapter,)))
    merged = open_checkpoint(scout, [adapter]).tensor(f"{module}.weight", (64, 64)).read()
    np.testing.assert_array_equal(found[f"{module}.weight"], rounded(merged, "int4", 32, BF16))
    only = write(scout, tmp_path / "float", Policy((Rule((EXPERTS,), "int4", 32),)), adapters=(adapter,))
    np.testing.assert_array_equal(weights_of(only)[f"{module}.weight"], merged.astype(BF16))
    assert "adapters" in json.loads((out_manifest(only)).read_text())["options"]["weights"]


def out_manifest(path: Path) -> Path:
    return path / "l4export" / "manifest.json"


@pytest.mark.parametrize("variant", ["scout", "maverick"])
def test_calibrated_codes_are_nearer_in_what_they_compute(tmp_path: Path, ids: Path, variant: str, scout: Path) -> None:
    """Of one layer's outputs on tokens like those of the calibration, in the format's own grid."""
    source = bfloat16_sample(tmp_path / variant, variant)
    plain, better = write(source, tmp_path / "plain"), write(source, tmp_path / "better", calibrate=ids)
    report = json.loads((better / "l4export" / "calibration.json").read_text())
    first = [one for one in report["matrices"] if one["name"].startswith("model.layers.0.self_attn.o_proj")]
    assert first and all(one["error"] < 0.9 * one["plain_error"] for one in first)
    name = "model.layers.0.self_attn.o_proj.weight"
    wanted, nearest, found = (weights_of(path)[name].astype(np.float32) for path in (source, plain, better))
    assert not np.array_equal(nearest, found)
    assert np.abs(found - wanted).max() < 8 * np.abs(nearest - wanted).max()  # the same weight, in another grid
    scales = TensorFile(better / "model.safetensors")
    stored = [entry for entry in scales.entries.values() if entry.name.endswith("weight_scale")]
    assert all(entry.dtype == "BF16" and (scales.array(entry).astype(np.float32) > 0).all() for entry in stored)


# What config.json says


def test_one_scheme_is_for_all_linear_layers(scout: Path, tmp_path: Path) -> None:
    given = json.loads((scout / "config.json").read_text())
    out = write(scout, tmp_path / "out")
    raw = json.loads((out / "config.json").read_text())
    ours = raw.pop("quantization_config")
    assert raw == given
    assert (ours["quant_method"], ours["format"], ours["ignore"]) == (
        "compressed-tensors", "pack-quantized",
        ["re:.*lm_head", "re:.*router", *(rf"re:.*\blayers\.\d+\.self_attn\.{each}_proj$" for each in "qkv")],
    )  # fmt: skip
    (group,) = ours["config_groups"].values()
    assert group["targets"] == ["Linear"] and group["input_activations"] is None
    weights = group["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["strategy"]) == (4, 32, "group")


def test_several_schemes_name_their_layers(scout: Path, tmp_path: Path) -> None:
    some = Rule(("model.layers.[02].feed_forward.experts.*",), "int8", 32)
    rest = Rule((ATTENTION,), "fp8")
    mixed = policy(
        "int4", 32, some, rest, Rule(("model.layers.1.feed_forward.shared_expert.down_proj.weight",), "int8", 32)
    )
    ours = told(write(scout, tmp_path / "out", mixed))
    groups = {(g["weights"]["type"], g["weights"]["num_bits"]): g for g in ours["config_groups"].values()}
    assert ours["format"] == "mixed-precision"
    assert groups["float", 8]["format"] == "float-quantized" and groups["int", 4]["format"] == "pack-quantized"
    assert groups["float", 8]["input_activations"]["dynamic"] is True
    assert groups["float", 8]["targets"] == [r"re:.*\blayers\.\d+\.self_attn\.o_proj$"]
    assert groups["int", 8]["targets"] == [
        r"re:.*\blayers\.(0|2)\.feed_forward\.experts\..*",
        r"re:.*\blayers\.(1)\.feed_forward\.shared_expert\.down_proj$",
    ]
    assert r"re:.*\blayers\.(1|3)\.feed_forward\.experts\..*" in groups["int", 4]["targets"]


def test_what_was_said_of_quantisation_before_is_gone(scout: Path, tmp_path: Path) -> None:
    source, _ = quantised(scout, tmp_path / "fp8", Linears(is_float=True, scale_dtype=np.float32))  # kept nowhere
    out = write(source, tmp_path / "out", Policy((Rule((EXPERTS,), "int4", 32),)))
    assert [g["weights"]["num_bits"] for g in told(out)["config_groups"].values()] == [4]
    assert r"re:.*\blayers\.\d+\.feed_forward\.shared_expert\.gate_proj$" in told(out)["ignore"]


def test_companions_are_copied_and_templates_have_their_folder(scout: Path, tmp_path: Path) -> None:
    source = bfloat16_sample(tmp_path / "source", "scout")
    (source / "additional_chat_templates").mkdir()
    files = {"generation_config.json": "{}", "LICENSE": "terms", "additional_chat_templates/tools.jinja": "{{ x }}"}
    for name, text in files.items():
        (source / name).write_text(text)
    out = write(source, tmp_path / "out")
    assert {name: (out / name).read_text() for name in files} == files
    listed = json.loads(out_manifest(out).read_text())["files"]
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert set(listed) == there - {"l4export/manifest.json"}


# What loaders cannot follow


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((Rule(("*.q_proj.weight",), "int4", 32),), "treats .*q_proj.weight, .*v_proj.weight differently"),
        ((Rule(("*.[qkv]_proj.weight",), "fp8"),), "q_proj.weight, .*: q, k and v stay in floats"),
        ((Rule(("*.gate_proj.weight",), "int4", 32),), "treats .*shared_expert.gate_proj.weight, .* differently"),
        ((Rule(("*.experts.down_proj",), "int8", 32),), "treats .*gate_up_proj, .*down_proj differently"),
        ((Rule(MATRICES, "int4", 16),), "blocks of 16 are none of 32, 64, 128"),
        ((Rule(MATRICES, "int4", 32, symmetric=False),), "zero points are not written"),
        ((Rule(MATRICES, "fp8", 128),), "scale a channel"),
        ((Rule(("lm_head.weight",), "int8"),), "lm_head.weight: stays in floats"),
        ((Rule(("model.embed_tokens.weight",), "int8"),), "embed_tokens.weight: stays in floats"),
        ((Rule(("*router*",), "int8"),), "names no weight of this model that can be quantised"),
        ((Rule(MATRICES, "int4", 128),), "block size 128 does not divide"),
    ],
)
def test_policies_that_loaders_cannot_follow(
    scout: Path, tmp_path: Path, rules: tuple[Rule, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write(scout, tmp_path / "out", Policy(rules))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": None}, "nothing is quantised; add --quant"),
        ({"dtype": "fp16"}, "--dtype"),
        ({"layers": (0, 1)}, "--layers"),
        ({"vision": "none"}, "--vision"),
        ({"vision_dtype": "fp16"}, "--vision-dtype"),
        ({"kv_layout": "chunked"}, "--kv-layout"),
        ({"kv_dtype": "int8"}, "--kv-dtype"),
        ({"max_context": 64}, "--max-context"),
        ({"activations": "fp8"}, "--activations"),
        ({"compute_capabilities": ("8.9",)}, "--compute-capability"),
        ({"kv_calibrate": Path("x")}, "--kv-calibrate"),
        ({"dump_ir": Path("x")}, "--dump-ir"),
        ({"bits_per_weight": 5.0}, "--bits-per-weight: the policy is given"),
    ],
)
def test_options_of_engines_are_refused_by_name(
    scout: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(scout, tmp_path / "out", BuildOptions(**{"target": TARGET, "policy": policy(), **options}))


def test_standard_policies_of_mlps_alone(scout: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stays in floats"):
        write(scout, tmp_path / "out", standard_policy("int4"))
    write(scout, tmp_path / "out", standard_policy("int4", of_mlps_alone=True))


def test_a_float16_model_has_float16_scales(workshop: Workshop, tmp_path: Path) -> None:
    source = bfloat16_sample(tmp_path / "source", "scout")
    edit_config(source, dtype="float16")
    file = TensorFile(write(source, tmp_path / "out") / "model.safetensors")
    assert {entry.dtype for name, entry in file.entries.items() if name.endswith("_scale")} == {"F16"}


@pytest.mark.slow
def test_a_policy_is_chosen_by_measured_damage(scout: Path, tmp_path: Path) -> None:
    build(scout, tmp_path / "out", BuildOptions(target=TARGET, bits_per_weight=10.0))
    weights = json.loads(out_manifest(tmp_path / "out").read_text())["options"]["weights"]
    assert weights["auto"]["bits_per_weight"] <= 10.0
    named = {name for rule in weights["policy"]["rules"] for name in rule["weights"]}
    assert named and all("feed_forward" in name for name in named)
    open_checkpoint(tmp_path / "out").formats()
