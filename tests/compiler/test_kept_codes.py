"""Codes that a checkpoint stores go over to the engine one by one, where the target's operators hold them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapters import pair, write_adapter
from cut_short import fail_after
from safetensors.numpy import load_file, save_file

from l4export.checkpoint import open_checkpoint
from l4export.checkpoint.sample import write_sample
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError
from l4export.graph.contents import weights_of
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.inspection.graph_file import load_graph
from l4export.parity.whole_model import check_parity
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.targets import TARGETS
from l4export.targets.kept_codes import keep_codes
from quantised_checkpoints import Linears, load, of_mlps, quantised, quantised_by_fbgemm
from workshop import Workshop, edit_config

FBGEMM = "fbgemm"
FORMS = {
    "int4": Linears(packed=True, bits=4, strategy="group"),
    "int4 rows": Linears(packed=True, bits=4),
    "int4 with zero points": Linears(packed=True, bits=4, strategy="group", symmetric=False),
    "int4 rows with zero points": Linears(packed=True, bits=4, symmetric=False, scale_dtype=np.float16),
    "int4 in int8": Linears(bits=4, strategy="group", symmetric=False),
    "int4 reordered": Linears(packed=True, bits=4, strategy="group", reordered=True),
    "int8": Linears(packed=True, strategy="group"),
    "int8 rows": Linears(),
    "int8 with zero points": Linears(symmetric=False),
    "fp8": Linears(is_float=True),
    "fp8 tensors": Linears(is_float=True, strategy="tensor"),
    "fp8 blocks": Linears(is_float=True, strategy="block", block=(128, 128)),
    "fp8 small blocks": Linears(is_float=True, strategy="block", block=(24, 16)),
}
Make = Callable[[str, str], tuple[Path, Path]]
INT8_IS_ROUNDED = "--target ort-cpu would round activations before them; --quant int8 keeps them"


@pytest.fixture(scope="module")
def made(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A quantised checkpoint and the float one that it stands for."""
    root = tmp_path_factory.mktemp("kept")

    @functools.cache
    def make(variant: str, name: str) -> tuple[Path, Path]:
        source, target = workshop.checkpoint(variant), root / f"{variant} {name}"
        return quantised_by_fbgemm(source, target) if name == FBGEMM else quantised(source, target, FORMS[name])

    return make


def check_equal(engine: Path, plain: Path, count: int) -> None:
    """Code times scale of every quantised weight of an engine is bit for bit the checkpoint's."""
    expected, found = load_file(plain / "model.safetensors"), dict(dequantized_weights(engine))
    assert len(found) == count
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


KEPT = [
    *(("scout", name, "ort-cpu") for name in FORMS if name.startswith("int4 ") and name != "int4 reordered"),
    *(("scout", name, "cpu") for name in FORMS if name.startswith("int") and name != "int4 reordered"),
    *(("scout", name, "onnx") for name in ("int4", "int4 rows", "int8", "int8 rows")),
    *(("scout", name, target) for name in ("fp8", "fp8 tensors", FBGEMM) for target in ("ort-cpu", "onnx")),
    ("scout", "fp8 blocks", "ort-cpu"),
    *(("maverick", name, target) for name in ("int4", "fp8", FBGEMM) for target in ("ort-cpu", "onnx")),
]


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize(("variant", "name", "target"), KEPT)
def test_kept_weights_are_equal_and_logits_float_accurate(
    made: Make, tmp_path: Path, variant: str, name: str, target: str
) -> None:
    """Logits are those of transformers on the dequantised weights, prefill and decode past chunks of 16."""
    path, plain = made(variant, name)
    options = BuildOptions(max_context=64, jobs=1, target=target)
    policy, told = keep_codes(open_checkpoint(path), TARGETS[target])
    assert policy and all(rule.as_stored for rule in policy.rules) and policy.accuracy_level == 1
    assert [codes.outcome for codes in told] == ["kept"]
    manifest = build(path, tmp_path / "e", options)
    check_equal(tmp_path / "e", plain, told[0].count)
    assert manifest.options["weights"]["stored_codes"] == [told[0].to_dict()]
    report = check_parity(tmp_path / "e", plain, 20, 20)
    assert report.passed and report.chunk_boundaries > 0
    for compared in (report.prefill, report.decode):  # float32 in another order of summation gives 1e-6
        assert compared and compared.max_relative_difference < 1e-5


def test_words_of_codes_are_the_bytes_of_the_operator(made: Make, tmp_path: Path) -> None:
    """W4A16 needs no packing for MatMulNBits."""
    path, _ = made("scout", "int4")
    build(path, tmp_path / "e", BuildOptions(max_context=64))
    stored = load(path)
    held = {
        weights.names: value.const_value.numpy()
        for value in load_graph(tmp_path / "e").graph.initializers.values()
        if (weights := weights_of(value)) and weights.part == "codes" and value.const_value
    }
    for each in ("gate", "up"):
        module = f"model.layers.1.feed_forward.shared_expert.{each}_proj"
        names = next(names for names in held if f"{module}.weight" in names)
        rows = np.split(held[names], len(names))[names.index(f"{module}.weight")]
        assert rows.tobytes() == stored[f"{module}.weight_packed"].tobytes()


@pytest.mark.parametrize(
    ("name", "options", "outcome", "reason"),
    [
        ("int4 reordered", BuildOptions(), "dequantized", "no operator of --target ort-cpu has such codes"),
        ("int4 with zero points", BuildOptions(target="onnx"), "dequantized", "--target onnx has no zero points"),
        ("int8 rows", BuildOptions(), "dequantized", INT8_IS_ROUNDED),
        ("int8 rows", BuildOptions(policy=standard_policy("int8")), "kept", ""),
        ("int4", BuildOptions(policy=standard_policy("int4")), "kept", ""),
        ("int4", BuildOptions(policy=standard_policy("int4", 32)), "kept", ""),
        ("int4", BuildOptions(policy=standard_policy("int4", 16)), "quantized again", "int4 in blocks of 16 is asked"),
        ("int4", BuildOptions(policy=standard_policy("int8")), "quantized again", "int8 is asked for"),
        ("fp8", BuildOptions(policy=standard_policy("int4")), "quantized again", "int4 is asked for"),
        (
            "fp8",
            BuildOptions(target="ort-cuda", kv_layout="chunked"),
            "dequantized",
            "has no documented kernel for FP8 weights",
        ),
        ("fp8", BuildOptions(target="tensorrt-rtx", compute_capabilities=("8.9",)), "kept", ""),
        ("fp8", BuildOptions(target="tensorrt-rtx", compute_capabilities=("8.0",)), "dequantized", "has no fp8"),
        ("fp8 small blocks", BuildOptions(), "dequantized", "no operator of --target ort-cpu has such codes"),
    ],
)
def test_what_becomes_of_codes(made: Make, name: str, options: BuildOptions, outcome: str, reason: str) -> None:
    (told,) = plan_build(made("scout", name)[0], options).stored_codes
    assert told.outcome == outcome and reason in told.reason
    assert told.count == 20
    assert "model.layers.*.feed_forward.experts.gate_up_proj" in told.weights


def test_experts_that_cuda_has_no_kernel_for(made: Make) -> None:
    """QMoE takes blocks of 64 and 128 there; MatMulNBits takes 32 as well."""
    told = plan_build(made("scout", "int4")[0], BuildOptions(target="ort-cuda", kv_layout="chunked")).stored_codes
    assert [(codes.outcome, codes.count) for codes in told] == [("dequantized", 8), ("kept", 12)]
    assert told[0].reason == "--target ort-cuda has no kernel for experts in blocks of 32"


@pytest.mark.parametrize("symmetric", [True, False])
def test_cuda_holds_packed_codes_and_float16_scales(tmp_path: Path, symmetric: bool) -> None:
    """The same codes after unpacking; scales of bfloat16 above 2^-14 are exact in float16."""
    write_sample(tmp_path / "s", "scout", "tiny", seed=3)
    edit_config(tmp_path / "s", intermediate_size=64, intermediate_size_mlp=64)
    _widen(tmp_path / "s")
    form = Linears(packed=True, bits=4, strategy="group", group=64, symmetric=symmetric)
    path, plain = quantised(tmp_path / "s", tmp_path / "c", form)
    build(path, tmp_path / "e", BuildOptions(target="ort-cuda", kv_layout="chunked", max_context=64))
    check_equal(tmp_path / "e", plain, 20)
    assert load_manifest(tmp_path / "e").packed_weights


def _widen(checkpoint: Path) -> None:
    """Experts of 64 features, which the kernels of GPUs take, instead of 32."""
    weights = load_file(checkpoint / "model.safetensors")
    for name, weight in weights.items():
        if "feed_forward" not in name or "router" in name:
            continue
        axis = {"down_proj": 1, "down_proj.weight": 1}.get(name.rpartition("experts.")[2], 2)
        if ".experts." not in name:
            axis = 1 if "down_proj" in name else 0
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(weight, 2, axis=2)
            weights[name] = np.concatenate([gate, gate[:, :, ::-1], up, up[:, ::-1]], axis=2)
        else:
            weights[name] = np.concatenate([weight, np.flip(weight)], axis=axis)
    save_file(weights, checkpoint / "model.safetensors")


def test_some_layers_are_floats(workshop: Workshop, tmp_path: Path) -> None:
    """First and last layers in bfloat16, as some released checkpoints have them: rules name the others alone."""
    which = lambda name: of_mlps(name) and ".layers.0." not in name  # noqa: E731
    path, plain = quantised(workshop.checkpoint("scout"), tmp_path / "c", FORMS["int4"], which)
    planned = plan_build(path, BuildOptions(max_context=64))
    assert planned.options.policy is not None
    (rule,) = planned.options.policy.rules
    assert not any(
        rule.matches(f"model.layers.0.feed_forward.experts.{name}") for name in ("gate_up_proj", "down_proj")
    )
    build(path, tmp_path / "e", BuildOptions(max_context=64))
    check_equal(tmp_path / "e", plain, 15)
    assert check_parity(tmp_path / "e", plain, 20, 20).passed


def test_a_slice_of_layers(made: Make, tmp_path: Path) -> None:
    path, plain = made("scout", "int4")
    build(path, tmp_path / "e", BuildOptions(max_context=64, layers=(1, 3)))
    assert check_parity(tmp_path / "e", plain, 20, 20).passed


def test_rules_of_the_policy_are_for_what_is_left(made: Make, tmp_path: Path) -> None:
    """`--quant int4` on W4A16: attention is rounded, the head has 8 bits, experts are kept; all is reported."""
    path, plain = made("scout", "int4")
    manifest = build(path, tmp_path / "e", BuildOptions(max_context=64, policy=standard_policy("int4")))
    rules = manifest.options["weights"]["policy"]["rules"]
    assert [(rule["kind"], rule["as_stored"]) for rule in rules] == [("int4", False), ("int8", False), ("int4", True)]
    assert manifest.precision["quant"] == "int4, int8" and manifest.options["weights"]["policy"]["accuracy_level"] == 4
    expected, found = load_file(plain / "model.safetensors"), dict(dequantized_weights(tmp_path / "e"))
    name = "model.layers.1.feed_forward.experts.down_proj"
    np.testing.assert_array_equal(found[name], expected[name])
    q = "model.layers.1.self_attn.q_proj.weight"
    assert (found[q] != expected[q]).any()
    assert not check_parity(tmp_path / "e", plain, 20, 20).thresholds  # the cost of rounding is no fault
    with pytest.raises(InputError, match="names no weight of this model"):
        plan_build(path, BuildOptions(policy=Policy((Rule(("model.layers.*.nothing",), "int4"),))))


def test_kept_codes_are_reused_and_up_to_date(made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = made("scout", "int4")
    said: list[str] = []
    for options in (BuildOptions(max_context=64), BuildOptions(max_context=64, force=True)):
        build(path, tmp_path / "e", options, on_notice=said.append)
    assert said[-1] == "e is up to date; every file was checked, none was written"
    build(path, tmp_path / "e", BuildOptions(max_context=64, kv_layout="concat", force=True), on_notice=said.append)
    assert "the weights have not changed; they are taken over from the engine that is there" in said
    with pytest.raises(SystemExit):
        main(["build", str(path), "-o", str(tmp_path / "f"), "--dry-run", "--write-policy", str(tmp_path / "p.toml")])
    assert "--write-policy: nothing is quantised" in capsys.readouterr().err


def test_a_build_that_was_cut_short_goes_on(made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of codes that are kept, and of what is rounded beside them."""
    path, _ = made("scout", "int4")
    options = BuildOptions(max_context=64, policy=standard_policy("int4"), jobs=1)
    build(path, tmp_path / "whole", options)
    with monkeypatch.context() as patched:
        fail_after(patched, 60_000, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            build(path, tmp_path / "e", options)
    said: list[str] = []
    build(path, tmp_path / "e", options, on_notice=said.append)
    assert any(line.startswith("resuming: ") for line in said)
    names = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert [(tmp_path / "e" / name).read_bytes() for name in names] == [
        (tmp_path / "whole" / name).read_bytes() for name in names
    ]


def test_what_an_adapter_changes_is_not_kept(made: Make, tmp_path: Path) -> None:
    """The codes of its base are not the model's; all others are kept."""
    path, _ = made("scout", "int4")
    module = "model.layers.1.feed_forward.shared_expert.up_proj"
    adapter = write_adapter(tmp_path / "adapter", pair(module, 32, 64), target_modules=["up_proj"])
    options = BuildOptions(max_context=64, adapters=(adapter,))
    told = {codes.outcome: codes for codes in plan_build(path, options).stored_codes}
    assert {outcome: codes.count for outcome, codes in told.items()} == {"kept": 19, "dequantized": 1}
    assert told["dequantized"].weights == (f"{module}.weight",)
    assert told["dequantized"].reason == "an adapter changes them"
    build(path, tmp_path / "e", options)
    report = check_parity(tmp_path / "e", path, 20, 20, adapters=(adapter,))
    assert report.passed and report.prefill.max_relative_difference < 1e-5
    merged = open_checkpoint(path, [adapter]).tensor(f"{module}.weight", (32, 64)).read()
    assert (merged != open_checkpoint(path).tensor(f"{module}.weight", (32, 64)).read()).any()


def test_scales_that_float16_cannot_hold(workshop: Workshop, tmp_path: Path) -> None:
    """Operators that want scales above 0 get the smallest there is, and never 1: weights stay as good as 0."""
    path, _ = quantised(workshop.checkpoint("scout"), tmp_path / "c", FORMS["int4"])
    _damage(path, f"{SHARED}.weight_scale", lambda scales: scales[3].fill(1e-12))
    build(path, tmp_path / "e", BuildOptions(max_context=64, target="onnx", dtype="fp16"))
    (scales,) = [
        value.const_value.numpy()
        for value in load_graph(tmp_path / "e").graph.initializers.values()
        if (held := weights_of(value))
        and (held.names, held.part) == ((f"{SHARED}.weight",), "scales")
        and value.const_value
    ]
    assert scales.dtype == np.float16 and (scales > 0).all()
    np.testing.assert_array_equal(scales[3], np.full_like(scales[3], 2.0**-24))
    found = dict(dequantized_weights(tmp_path / "e"))[f"{SHARED}.weight"]
    assert np.abs(found[3]).max() <= 8 * 2.0**-24


def _damage(path: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    weights = load(path)
    change(weights[name])
    save_file(weights, path / "model.safetensors")


SHARED = "model.layers.1.feed_forward.shared_expert.up_proj"


@pytest.mark.parametrize(
    ("form", "name", "value", "message"),
    [
        ("int4", "weight_scale", np.nan, "has a scale of nan"),
        ("int4", "weight_scale", -1, r"has a scale of -1\.0"),
        ("int4", "weight_scale", 0, "has a scale of 0 for codes that are not 0"),
        ("int4", "weight_scale", 3e38, "whose weights are not finite"),
        ("int4", "weight_shape", 3, "and the layer is"),
        ("fp8", "weight", np.nan, "has a code that is NaN"),
        ("int4 in int8", "weight", 8, "has values outside of -8 to 7"),
        ("int4 in int8", "weight_zero_point", 8, "has values outside of -8 to 7"),
    ],
)
def test_damaged_sidecars_are_refused(
    workshop: Workshop, tmp_path: Path, form: str, name: str, value: float, message: str
) -> None:
    """As strictly as where weights are computed from them."""
    path, _ = quantised(workshop.checkpoint("scout"), tmp_path / "c", FORMS[form])
    _damage(path, f"{SHARED}.{name}", lambda values: values.flat.__setitem__(3 % values.size, value))
    with pytest.raises(InputError, match=message):
        build(path, tmp_path / "e", BuildOptions(max_context=64))
    assert not (tmp_path / "e").exists()


def test_a_scale_of_zero_beside_codes_of_zero(workshop: Workshop, tmp_path: Path) -> None:
    """Weights that are all 0; operators that want scales above 0 get 1."""
    source = tmp_path / "s"
    write_sample(source, "scout", "tiny", seed=3)
    weights = load_file(source / "model.safetensors")
    weights[f"{SHARED}.weight"][3] = 1e-30  # rounds to a scale, not to 0
    save_file(weights, source / "model.safetensors")
    path, plain = quantised(source, tmp_path / "c", FORMS["int4"])
    stored, floats = load(path), load_file(plain / "model.safetensors")
    stored[f"{SHARED}.weight_packed"][3] = np.int32(-0x77777778)  # eight codes of 8, which stand for 0
    stored[f"{SHARED}.weight_scale"][3] = 0
    floats[f"{SHARED}.weight"][3] = 0
    save_file(stored, path / "model.safetensors")
    save_file(floats, plain / "model.safetensors")
    for target in ("ort-cpu", "onnx"):
        build(path, tmp_path / target, BuildOptions(max_context=64, target=target))
        check_equal(tmp_path / target, plain, 20)


def test_the_manifest_is_checked(made: Make, tmp_path: Path) -> None:
    build(made("scout", "int4")[0], tmp_path / "e", BuildOptions(max_context=64))
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    manifest["options"]["weights"]["policy"]["rules"][0]["as_stored"] = "yes"
    (tmp_path / "e" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"options\.weights\.policy"):
        load_manifest(tmp_path / "e")
