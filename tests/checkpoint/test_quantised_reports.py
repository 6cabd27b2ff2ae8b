"""What is said of a quantised checkpoint, and what reading one takes."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_vision import pixels

from l4export.checkpoint import open_checkpoint
from l4export.checkpoint.compressed_tensors import find_linear
from l4export.checkpoint.quantization_scheme import Scheme
from l4export.checkpoint.sample import write_sample
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.cli import main
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.errors import InputError
from l4export.inspection.facts import CheckpointFacts, inspect
from l4export.reference.vision_tower import HFVisionTower
from l4export.storage.safetensors import TensorFile
from l4export.targets import CHECKPOINT_TARGETS, TARGETS
from quantised_checkpoints import Linears, load, of_mlps, quantised, quantised_by_fbgemm
from workshop import Workshop, edit_config

INT4 = Linears(packed=True, bits=4, strategy="group")


def run(*arguments: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_notices(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = quantised(workshop.checkpoint("scout"), tmp_path / "c", INT4)
    linears = 4 * (4 * 3 + 3)  # layers, each with four experts and a shared one
    assert open_checkpoint(path).notes() == [
        f"{path}: {linears} tensors of weights are quantised ('compressed-tensors': INT4, groups of 32)"
    ]
    config = INT4.config() | {"kv_cache_scheme": {"num_bits": 8}}
    config["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "float", "dynamic": True}
    edit_config(path, quantization_config=config)
    (note,) = open_checkpoint(path).notes()
    assert note.endswith("; that it asks for quantised activations and a quantised KV cache is ignored")
    assert run("build", path, "-o", tmp_path / "e", "--dry-run", "--quant", "int8") == 0
    said = capsys.readouterr().err
    assert note in said
    assert "20 weights in INT4, groups of 32: quantised a second time (int8 is asked for); expect the losses" in said
    for quant in ("none", "int4"):
        assert run("build", path, "-o", tmp_path / "e", "--dry-run", "--quant", quant) == 0
        assert "20 weights in INT4, groups of 32: codes and scales are kept" in capsys.readouterr().err


def test_scales_of_activations_are_left_aside(workshop: Workshop, tmp_path: Path) -> None:
    """Static scales beside a quantised weight are its own; beside a float weight they say that something is missing."""
    path, _ = quantised(workshop.checkpoint("scout"), tmp_path / "c", INT4)
    weights, name = load(path), "model.layers.1.feed_forward.shared_expert.up_proj"
    weights |= {f"{name}.input_scale": np.ones(1, np.float32), f"{name}.output_scale": np.ones(1, np.float32)}
    save_file(weights, path / "model.safetensors")
    parts = open_checkpoint(path).tensor(f"{name}.weight", (32, 64)).parts
    assert {f"{name}.input_scale", f"{name}.output_scale"} < {part.name for part in parts}
    weights["model.layers.1.self_attn.q_proj.input_scale"] = np.ones(1, np.float32)
    save_file(weights, path / "model.safetensors")
    with pytest.raises(InputError, match=r"q_proj.input_scale' is part of a quantised weight, and no codes"):
        plan_build(path, BuildOptions(max_context=64))


def test_what_inspect_says(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = quantised(workshop.checkpoint("scout"), tmp_path / "c", INT4)
    facts = inspect(path)
    assert isinstance(facts, CheckpointFacts)
    assert facts.stored_as["shared expert"] == facts.stored_as["experts gate_up"] == ("INT4, groups of 32",)
    assert facts.stored_as["attention q"] == ("F32",) and facts.bits_per_weight["attention q"] == 32
    shape = 128 / (32 * 64)  # weight_shape: two numbers of 64 bits beside 32 x 64 codes
    assert facts.bits_per_weight["shared expert"] == round(4 + 16 / 32 + shape, 4)
    assert facts.kept_codes["ort-cpu"] == ("experts gate_up", "experts down", "shared expert")
    assert facts.kept_codes["ort-cuda"] == ("shared expert",)  # QMoE has no kernel there for blocks of 32
    assert set(facts.kept_codes) == {*TARGETS, *CHECKPOINT_TARGETS}
    assert facts.kept_codes["compressed-tensors"] == ()  # the config names float32, and scales are bfloat16
    edit_config(path, dtype="bfloat16")
    written = inspect(path)
    assert isinstance(written, CheckpointFacts)
    assert written.kept_codes["compressed-tensors"] == facts.kept_codes["ort-cpu"]
    assert run("inspect", path) == 0
    assert "shared expert  INT4, groups of 32" in capsys.readouterr().out
    assert json.loads(facts.to_json())["stored_as"]["head"] == ["F32"]
    plain = inspect(workshop.checkpoint("scout"))
    assert isinstance(plain, CheckpointFacts) and plain.stored_as == {} == plain.bits_per_weight
    fp8 = inspect(quantised_by_fbgemm(workshop.checkpoint("maverick"), tmp_path / "f")[0])
    assert isinstance(fp8, CheckpointFacts)
    assert fp8.stored_as["experts down"] == ("FP8, a scale a channel",) == fp8.stored_as["dense MLP"]


def test_some_layers_in_another_form(workshop: Workshop, tmp_path: Path) -> None:
    """Told weight by weight: the experts of one layer in floats, of the others in INT4."""
    source = workshop.checkpoint("scout")
    path, plain = quantised(source, tmp_path / "c", INT4, lambda name: of_mlps(name) and ".layers.2." not in name)
    facts, expected = inspect(path), load(plain)
    assert isinstance(facts, CheckpointFacts)
    assert facts.stored_as["experts down"] == ("INT4, groups of 32", "F32")
    for layer in (1, 2):
        name = f"model.layers.{layer}.feed_forward.experts.down_proj"
        np.testing.assert_array_equal(open_checkpoint(path).tensor(name, expected[name].shape).read(), expected[name])


def test_a_multimodal_checkpoint_and_a_quantised_tower(tmp_path: Path) -> None:
    write_sample(tmp_path / "s", "scout", "tiny", seed=3, vision=True)

    def which(name: str) -> bool:
        return of_mlps(name) or name.endswith(("fc1.weight", "linear_1.weight"))

    path, plain = quantised(tmp_path / "s", tmp_path / "c", Linears(is_float=True), which)
    assert open_checkpoint(path).prefix == "language_model."
    seen = [HFVisionTower(open_checkpoint(each)).features(pixels(2, 16)) for each in (path, plain)]
    np.testing.assert_array_equal(*seen)
    assert run("build", path, "-o", tmp_path / "e", "--dry-run") == 0


@pytest.mark.parametrize("read", ["all", "rows", "region"])
def test_reading_takes_little_beside_the_result(tmp_path: Path, read: str) -> None:
    size, group = 4096, 32
    random = np.random.default_rng(0)
    save_file(
        {
            "a.weight_packed": random.integers(-(2**31), 2**31, (size, size // 8), dtype=np.int32),
            "a.weight_scale": np.ones((size, size // group), ml_dtypes.bfloat16),
            "a.weight_shape": np.array([size, size]),
        },
        tmp_path / "w.safetensors",
    )
    file = TensorFile(tmp_path / "w.safetensors")
    tensors = {name: SourceTensor(entry, file) for name, entry in file.entries.items()}
    weight = find_linear("a.weight", (size, size), tensors, [Scheme(4, False, strategy="group", group=group)])
    assert weight is not None
    reads: dict[str, tuple[Callable[[], object], int]] = {
        "all": (weight.read, size * size * 4),
        "rows": (lambda: [len(rows) for _, rows in weight.rows((slice(0, size), slice(0, size)))], 2 * 32 * 2**20),
        "region": (lambda: weight.read((slice(5, 69), slice(100, 1124))), 64 * 1024 * 4),
    }
    act, result = reads[read]
    tracemalloc.start()
    act()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - result < 16 * 2**20  # what is made of 2^20 elements at a time, in at most four bytes each
