"""What is no checkpoint that l4export reads: the message says what it is and what to do, not what went wrong first."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l4export.checkpoint import open_checkpoint, read_config
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.errors import EnvironmentLacks, InputError
from workshop import Workshop, copy_checkpoint, edit_config

Weights = dict[str, np.ndarray]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 953312\n"


def refused(checkpoint: Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        plan_build(checkpoint, BuildOptions(max_context=128))
    message = str(error.value)
    assert "\n" not in message and len(message) < 500 and all(word in message for word in words), message


@pytest.fixture
def checkpoint(workshop: Workshop, tmp_path: Path) -> Path:
    return copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")


def reweigh(checkpoint: Path, change: Callable[[Weights], Weights]) -> None:
    save_file(change(load_file(checkpoint / "model.safetensors")), checkpoint / "model.safetensors")


def test_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = Path("meta-llama/Llama-4-Scout-17B-16E-Instruct")
    refused(hub, "hf download meta-llama/Llama-4-Scout-17B-16E-Instruct --local-dir Llama-4-Scout-17B-16E-Instruct")
    with pytest.raises(InputError, match="hf download"):
        read_config(hub)
    hub.parent.mkdir()
    for path in (hub, Path("scout"), Path("a/b/c"), Path("/a/b"), Path("../a/b")):
        with pytest.raises(InputError) as error:
            open_checkpoint(path)
        assert "hf download" not in str(error.value) and "no such file or directory" in str(error.value)
    Path("model.safetensors").write_bytes(b"")
    refused(Path("model.safetensors"), "not a directory; give the one that holds config.json")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], ["holds an adapter", "with --adapter"]),
        (["params.json", "consolidated.00.pth"], ["params.json: not valid JSON"]),
        (["consolidated.00.pth"], ["params.json is missing"]),
        (["consolidated.00.safetensors"], ["Meta's own layout"]),
        (["snapshots"], ["is a cache of the Hugging Face hub", "snapshots"]),
        (["model-Q4_K_M.gguf"], ["GGUF"]),
        (["pytorch_model.bin"], ["pickle", "safetensors"]),
        (["README.md"], ["config.json is missing", "Hugging Face layout"]),
        ([], ["config.json is missing"]),
    ],
)
def test_other_directories(tmp_path: Path, files: list[str], words: list[str]) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    refused(tmp_path, str(tmp_path), *words)


def test_an_adapter_beside_the_weights(checkpoint: Path) -> None:
    (checkpoint / "adapter_config.json").write_text("{}")
    refused(checkpoint, "holds an adapter", "or remove the file if the weights have it merged in")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "Git LFS pointer, not the file itself; fetch it with git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (b"\x80\x02}q\x00X\x05" + bytes(100), "pickle, which is never read"),
        (b"GGUF\x03\0\0\0" + bytes(100), "GGUF"),
        (b"<!DOCTYPE html><html>Access denied", "web page"),
        (b'{"a": 1}' + bytes(20), "header of"),
    ],
)
def test_files_that_are_something_else(checkpoint: Path, content: bytes, words: str) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    refused(checkpoint, "model.safetensors", words)
    if not content.startswith(b"{"):
        (checkpoint / "config.json").write_bytes(content)
        refused(checkpoint, "config.json", words)


def test_a_shard_and_an_index_that_are_pointers(checkpoint: Path) -> None:
    index = checkpoint / "model.safetensors.index.json"
    (checkpoint / "model.safetensors").rename(checkpoint / "one.safetensors")
    index.write_bytes(POINTER)
    refused(checkpoint, index.name, "Git LFS pointer")
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "one.safetensors"}}))
    (checkpoint / "one.safetensors").write_bytes(POINTER)
    refused(checkpoint, "one.safetensors", "Git LFS pointer")


def linear_experts(weights: Weights, part: str = "weight") -> Weights:
    """axolotl#2502, auto-round#744: routed experts as one Linear each."""
    new = {name: array for name, array in weights.items() if ".experts." not in name}
    for name in set(weights) - set(new):
        stem = name.rpartition(".")[0]
        for expert, matrix in enumerate(weights[name]):
            new[f"{stem}.{expert}.{name.rpartition('.')[2]}.{part}"] = np.ascontiguousarray(matrix.T)
    return new


def renamed(weights: Weights, old: str, new: str) -> Weights:
    return {name.replace(old, new): array for name, array in weights.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: renamed(linear_experts(w), "experts.2.", "experts.9."),
         ["experts are stored one by one", ".experts.", "not all of them"]),
        (lambda w: linear_experts(w, "weight_packed"), ["quantised weight", "weight_packed", "no quantization_config"]),
        (lambda w: renamed(w, "q_proj.weight", "q_proj.base_layer.weight"), ["unmerged", "merge_and_unload"]),
        (lambda w: renamed(w, "model.", "base_model.model.model.") | {"x.lora_A.weight": np.ones(1)}, ["unmerged"]),
        (lambda w: renamed(w, "model.", "_orig_mod.model."), ["it is called '_orig_mod.model.embed_tokens.weight'"]),
        (lambda w: renamed(w, "model.", "module.model."), ["it is called 'module.model.embed_tokens.weight'"]),
        (lambda w: renamed(w, "model.", "model.language_model."), ["it is called 'model.language_model.embed"]),
        (lambda w: renamed(w, "embed_tokens", "tok_embeddings") | {"tok_embeddings.weight": np.ones(1)}, ["Meta"]),
        (lambda w: renamed(w, "layers.1.self_attn.q_proj.weight", "layers.1.self_attn.q_proj.qweight"),
         ["quantised", "layers.1.self_attn.q_proj.qweight"]),
        (lambda w: w | {"model.layers.0.self_attn.q_proj.weight_scale": np.ones(1)}, ["part of a quantised weight"]),
        (lambda w: w | {"model.layers.0.self_attn.q_proj.bias": np.ones(1)}, ["is a bias", "not supported"]),
        (lambda w: w | {"model.layers.0.feed_forward.gate.weight": np.ones(1)}, ["no part of the model"]),
        (lambda w: {n: a for n, a in w.items() if "norm" not in n}, ["norm.weight", "missing", "do not match"]),
    ],
)  # fmt: skip
def test_names_that_are_not_those_of_the_model(
    checkpoint: Path, change: Callable[[Weights], Weights], words: list[str]
) -> None:
    reweigh(checkpoint, change)
    refused(checkpoint, str(checkpoint), *words)


def test_layers_cut_in_the_config_alone(checkpoint: Path) -> None:
    """Primus#172: --layers is what that was for, and it works."""
    edit_config(checkpoint, num_hidden_layers=2, no_rope_layers=None, layer_types=None, moe_layers=None)
    refused(checkpoint, "model.layers.2.", "num_hidden_layers is 2", "give --layers 0:2")
    assert plan_build(checkpoint, BuildOptions(layers=(0, 2), max_context=128)).config.num_hidden_layers == 2


def to_fp8(weights: Weights) -> Weights:
    return {n: a.astype(ml_dtypes.float8_e4m3fn) if "q_proj" in n else a for n, a in weights.items()}


def test_fp8_weights_of_modelopt(checkpoint: Path) -> None:
    """Only hf_quant_config.json tells. transformers reads the codes as numbers, in silence."""
    reweigh(checkpoint, to_fp8)
    refused(checkpoint, "layers.0.self_attn.q_proj.weight", "F8_E4M3", "no quantization_config that says how")
    (checkpoint / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    refused(checkpoint, "ModelOpt (hf_quant_config.json)", "use the float checkpoint", "compressed-tensors")


def extended(name: str, array: np.ndarray) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {f"model.layers.0.self_attn.q_proj.{name}": array}


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ({"quant_method": "bitsandbytes"}, extended("weight.quant_state.bitsandbytes__nf4", np.ones(1, np.uint8)),
         ["bitsandbytes", "quant_state", "dequantize()"]),
        ({"quant_method": "bitsandbytes"}, extended("SCB", np.ones(64, np.float32)), ["bitsandbytes", "SCB"]),
        ({"group_size": 64, "bits": 4}, extended("scales", np.ones((64, 1), np.float32)), ["MLX", "--dequantize"]),
        ({"quant_method": "gptq"}, extended("qweight", np.ones((8, 64), np.int32)), ["GPTQ or AWQ", "qweight"]),
        ({"quant_method": "fp8"}, extended("weight_scale_inv", np.ones((1, 1), np.float32)), ["the method fp8"]),
        ({"quant_method": "modelopt"}, to_fp8, ["ModelOpt (quantization_config)"]),
        ({"quant_method": "quanto"}, to_fp8, ["'quanto'", "q_proj.weight", "compressed-tensors and fbgemm_fp8"]),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}}, to_fp8,
         ["sparsity_config", "not read"]),
        ({"quant_method": "compressed-tensors"}, to_fp8, ["config_groups must be an object"]),
    ],
)  # fmt: skip
def test_quantised_by_tools_that_are_not_read(
    checkpoint: Path, method: Any, change: Callable[[Weights], Weights], words: list[str]
) -> None:
    reweigh(checkpoint, change)
    edit_config(checkpoint, quantization_config=method)
    refused(checkpoint, *words)


@pytest.mark.parametrize(
    "method",
    [
        {"quant_method": "bitnet", "quantization_mode": "online"},  # computes with other values than it stores
        {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"a": {}}}},  # rotates activations
        {"load_in_4bit": True},
        "fp8",
    ],
)
def test_quantisation_that_may_compute_something_else_with_float_weights(checkpoint: Path, method: Any) -> None:
    edit_config(checkpoint, quantization_config=method)
    refused(checkpoint, "quantization_config", "all weights are float", "remove it from the file")


def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setattr("l4export.checkpoint.hf_checkpoint._MAX_TENSORS", 20)
    refused(checkpoint, "has more than 20 tensors")


def test_a_choice_by_measured_damage_without_torch(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (ids := checkpoint / "ids.txt").write_text(" ".join(["7"] * 300))
    with pytest.raises(EnvironmentLacks, match="the reference needs torch"):
        plan_build(checkpoint, BuildOptions(bits_per_weight=5.0, calibrate=ids, max_context=128))
