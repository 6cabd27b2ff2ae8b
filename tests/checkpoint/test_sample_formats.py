"""Quantised samples have the layout of the released checkpoints, and codes of the float sample's weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from l4export.checkpoint import open_checkpoint, sample
from l4export.checkpoint.sample import FORMATS, write_sample
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.model.tensors import tensors
from l4export.parity.whole_model import check_parity
from quantised_checkpoints import F8, load, pack

BF16 = ml_dtypes.bfloat16
CASES = [("scout", "fp8"), ("maverick", "fp8"), ("scout", "w4a16"), ("maverick", "w4a16"), ("guard", "w4a16")]
IGNORED = ["re:.*lm_head", "re:.*self_attn", "re:.*router", "re:.*vision_model", "re:.*multi_modal_projector"]
PARTS = {"fp8": ("weight", "weight_scale"), "w4a16": ("weight_packed", "weight_scale", "weight_shape")}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("samples")
    for variant in ("scout", "maverick", "guard"):
        for form in FORMATS:
            if (variant, form) in CASES or form == "float":
                write_sample(root / f"{variant}-{form}", variant, "tiny", seed=2, form=form)
    return root


def linears(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The matrix [out, in] of every linear layer of an MLP, experts one by one."""
    found = {}
    for name, weight in weights.items():
        module, _, tensor = name.rpartition(".")
        if module.endswith(".experts"):
            for expert, matrix in enumerate(weight):
                each = ("down_proj",) if tensor == "down_proj" else ("gate_proj", "up_proj")
                halves = np.split(matrix, len(each), axis=1)
                found |= {f"{module}.{expert}.{linear}": half.T for linear, half in zip(each, halves, strict=True)}
        elif "feed_forward" in name and "router" not in name:
            found[module] = weight
    return found


def by_definition(matrix: np.ndarray, form: str) -> dict[str, np.ndarray]:
    """Row by row: the largest of a row (FP8), or of 32 neighbours (int4), is 448, or 7.5 (half of 15 steps)."""
    size, top = (matrix.shape[1], 448) if form == "fp8" else (32, 7.5)
    scales = np.zeros((len(matrix), matrix.shape[1] // size), BF16)
    codes = np.zeros(matrix.shape, F8 if form == "fp8" else np.int8)
    for row, group in np.ndindex(scales.shape):
        values = matrix[row, group * size : (group + 1) * size]
        scales[row, group] = np.abs(values).max() / np.float32(top)
        exact = values / np.float32(scales[row, group])
        rounded = np.clip(exact, -448, 448) if form == "fp8" else np.clip(np.rint(exact), -8, 7)
        codes[row, group * size : (group + 1) * size] = rounded
    if form == "fp8":
        return {"weight": codes, "weight_scale": scales}
    shape = np.array(matrix.shape, np.int64)
    return {"weight_packed": pack(codes, 4), "weight_scale": scales, "weight_shape": shape}


@pytest.mark.parametrize(("variant", "form"), CASES)
def test_every_tensor_is_what_the_definition_gives(samples: Path, variant: str, form: str) -> None:
    floats = {name: weight.astype(BF16) for name, weight in load(samples / f"{variant}-float").items()}
    experts_alone = form == "fp8"
    expected = {}
    for module, matrix in linears(floats).items():
        if ".experts." in module or not experts_alone:
            expected |= {
                f"{module}.{part}": values for part, values in by_definition(matrix.astype(np.float32), form).items()
            }
    for name, weight in floats.items():
        if "feed_forward" not in name or "router" in name or (experts_alone and ".experts." not in name):
            expected[name] = weight
    found = load(samples / f"{variant}-{form}")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_config_is_that_of_the_released_checkpoints(samples: Path) -> None:
    def config(name: str) -> dict[str, Any]:
        raw = json.loads((samples / name / "config.json").read_text())
        assert raw["dtype"] == "bfloat16"
        found: dict[str, Any] = raw["quantization_config"]
        return found

    fp8, w4a16 = config("maverick-fp8"), config("scout-w4a16")
    both = {"global_compression_ratio": None, "kv_cache_scheme": None, "quant_method": "compressed-tensors",
            "quantization_status": "compressed"}  # fmt: skip
    assert {key: fp8[key] for key in both} == both == {key: w4a16[key] for key in both}
    assert (fp8["format"], w4a16["format"]) == ("float-quantized", "pack-quantized")
    assert w4a16["ignore"] == IGNORED
    assert fp8["ignore"] == [*IGNORED, "re:.*shared_expert", *(f"re:.*feed_forward.{name}_proj" for name in
                                                               ("gate", "up", "down"))]  # fmt: skip
    eight, four = fp8["config_groups"]["group_0"], w4a16["config_groups"]["group_0"]
    assert eight["targets"] == four["targets"] == ["Linear"] and four["input_activations"] is None
    said = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    assert eight["weights"] | said == eight["weights"] and eight["weights"]["group_size"] is None
    said |= {"strategy": "token", "dynamic": True}
    assert eight["input_activations"] | said == eight["input_activations"]
    said |= {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "dynamic": False}
    assert four["weights"] | said | {"actorder": "weight"} == four["weights"]


@pytest.mark.parametrize(("variant", "form"), [("maverick", "fp8"), ("scout", "w4a16")])
def test_an_engine_of_it_is_transformers_model(samples: Path, tmp_path: Path, variant: str, form: str) -> None:
    path = samples / f"{variant}-{form}"
    build(path, tmp_path / "e", BuildOptions(max_context=128))
    assert check_parity(tmp_path / "e", path, 40, 20).passed


@pytest.mark.parametrize(("variant", "form"), CASES)
def test_transformers_reads_the_same_numbers(samples: Path, variant: str, form: str) -> None:
    """It rounds the product of code and scale to bfloat16, so to one part in 256."""
    from transformers import CompressedTensorsConfig, Llama4ForCausalLM

    path = samples / f"{variant}-{form}"
    method = CompressedTensorsConfig(dequantize=True)
    model, report = Llama4ForCausalLM.from_pretrained(path, quantization_config=method, output_loading_info=True)
    assert not any(report.values()), report
    theirs = {name: values.float().numpy() for name, values in model.state_dict().items()}
    checkpoint, ours = open_checkpoint(path), {}
    for name, shape in tensors(checkpoint.config).items():
        ours[name] = checkpoint.tensor(name, shape).read().astype(np.float32)
    others = {name: values for name, values in ours.items() if ".experts." not in name}
    for name, values in [*others.items(), *((f"{module}.weight", each) for module, each in linears(ours).items())]:
        np.testing.assert_allclose(theirs[name], values, rtol=2**-8, atol=0, err_msg=name)


def test_shards_change_nothing_and_a_seed_everything(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_checkpoint(samples / "scout-w4a16")
    write_sample(tmp_path / "other", "scout", "tiny", seed=3, form="w4a16")
    monkeypatch.setattr(sample, "_SHARD_BYTES", 20_000)
    write_sample(tmp_path / "shards", "scout", "tiny", seed=2, form="w4a16")
    shards, other = open_checkpoint(tmp_path / "shards"), open_checkpoint(tmp_path / "other")
    assert len(shards.files) > 5 and shards.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(tensor.read(), shards.tensors[name].read())
        assert name.endswith("weight_shape") or (tensor.read() != other.tensors[name].read()).any()


def test_the_tower_is_not_quantised(tmp_path: Path) -> None:
    write_sample(tmp_path / "out", "maverick", "tiny", seed=2, vision=True, form="w4a16")
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.is_vision_plain() and checkpoint.prefix == "language_model."
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["format"]
    build(tmp_path / "out", tmp_path / "e", BuildOptions(max_context=64))


@pytest.mark.parametrize(
    ("variant", "form", "layers", "scales", "gigabytes"),
    [
        ("maverick", "fp8", 24 * 128, 2 * 8192 + 5120, 415),
        pytest.param("scout", "w4a16", 48 * 17, 3 * 8192 * 5120 // 128, 63, marks=pytest.mark.slow),
    ],
)
def test_full_size_has_scales_and_holes_for_codes(
    tmp_path: Path, variant: str, form: str, layers: int, scales: int, gigabytes: int
) -> None:
    """Widths and scales are counted for the three linear layers of an expert."""
    write_sample(tmp_path / "out", variant, "full", seed=0, form=form)
    checkpoint = open_checkpoint(tmp_path / "out")
    for name, shape in tensors(checkpoint.config).items():
        checkpoint.tensor(name, shape)
    assert round(sum(file.size for file in checkpoint.files) / 1e9) == gigabytes
    on_disk = sum(file.path.stat().st_blocks * 512 for file in checkpoint.files)
    written = 2 * layers * scales
    assert written < on_disk < 1.02 * written + 10_000 * 3 * layers  # a hole begins and ends at a block
    found = [tensor for name, tensor in checkpoint.tensors.items() if name.endswith(".weight_scale")]
    assert len(found) == 3 * layers and sum(math.prod(tensor.shape) for tensor in found) == layers * scales
    values = found[-1].read().astype(np.float32)
    assert values.min() > 0 and len(np.unique(values)) > 100
    codes = next(tensor for name, tensor in checkpoint.tensors.items() if name.endswith((".weight", "_packed"))
                 and tensor.entry.dtype in ("F8_E4M3", "I32"))  # fmt: skip
    assert not codes.read((slice(1000), slice(1000))).view(np.uint8).any()


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["sample", str(tmp_path / "out"), "--variant", "maverick", "--format", "fp8"])
    assert "maverick tiny in fp8, 181,312 parameters, seed 0" in capsys.readouterr().out


def test_refusals(tmp_path: Path) -> None:
    for form, variant, words in (("int3\n", "scout", "unknown; choose float, fp8, w4a16"),
                                 ("fp8", "guard", "quantises routed experts, and 'guard' has none")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            write_sample(tmp_path / "out", variant, "tiny", 0, form=form)
    assert list(tmp_path.iterdir()) == []
