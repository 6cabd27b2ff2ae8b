"""Quantised layers whose tensors contradict config.json, or have values that no rounding makes: refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from l4export.checkpoint import open_checkpoint
from l4export.errors import InputError
from l4export.model.tensors import tensors
from quantised_checkpoints import Linears, Weights, load, quantised, quantised_by_fbgemm
from workshop import Workshop, edit_config

LAYER = "model.layers.0.feed_forward.shared_expert.gate_proj"
INT4 = Linears(packed=True, bits=4, strategy="group", symmetric=False, reordered=True)
IN_INT8 = Linears(bits=4, strategy="group", symmetric=False)
FP8 = Linears(is_float=True)


def refused(path: Path, name: str, *words: str) -> None:
    with pytest.raises(InputError) as error:
        checkpoint = open_checkpoint(path)
        checkpoint.tensor(name, tensors(checkpoint.config)[name]).read()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in (str(path), *words)), message


def one_layer(workshop: Workshop, path: Path, form: Linears) -> Path:
    return quantised(workshop.checkpoint("scout"), path, form, lambda name: name == f"{LAYER}.weight")[0]


def changed(part: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Weights], None]:
    """One tensor of the layer: another one, or none."""

    def edit(weights: Weights) -> None:
        if (new := change(weights.pop(f"{LAYER}.{part}"))) is not None:
            weights[f"{LAYER}.{part}"] = np.ascontiguousarray(new)

    return edit


def element(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """The last element is another one."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.reshape(-1)[-1] = value
        return array

    return change


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        (INT4, changed("weight_scale", lambda a: None), ["weight_scale' is missing", "INT4 with zero points"]),
        (INT4, changed("weight_zero_point", lambda a: None), ["weight_zero_point' is missing"]),
        (INT4, changed("weight_shape", lambda a: None), ["weight_shape' is missing"]),
        (INT4, changed("weight_g_idx", lambda a: None), ["weight_g_idx' is missing", "in another order"]),
        (INT4, changed("weight_packed", lambda a: a[:, 1:]), ["weight_packed' has shape", "expected"]),
        (INT4, changed("weight_packed", lambda a: a.view(np.float32)), ["weight_packed' has dtype F32, expected I32"]),
        (INT4, changed("weight_scale", lambda a: a[:, :1]), ["weight_scale' has shape [32, 1], expected [32, 2]"]),
        (INT4, changed("weight_scale", lambda a: a.reshape(-1)), ["weight_scale' has shape [64], expected [32, 2]"]),
        (INT4, changed("weight_scale", lambda a: a.astype(np.int32)), ["weight_scale' has dtype I32"]),
        (INT4, changed("weight_scale", element(np.nan)), ["weight_scale' has a scale of nan"]),
        (INT4, changed("weight_scale", element(np.inf)), ["weight_scale' has a scale of inf"]),
        (INT4, changed("weight_scale", element(-0.5)), ["weight_scale' has a scale of -0.5"]),
        (INT4, changed("weight_scale", lambda a: a * 0), ["weight_scale' has a scale of 0 for codes that are not 0"]),
        (INT4, changed("weight_shape", element(65)), ["weight_shape' is [32, 65], and the layer is [32, 64]"]),
        (INT4, changed("weight_g_idx", element(2)), ["weight_g_idx' does not put 32 columns into each of 2 groups"]),
        (INT4, changed("weight_g_idx", element(-1)), ["weight_g_idx' does not put"]),
        (INT4, changed("weight_g_idx", lambda a: a * 0), ["weight_g_idx' does not put"]),
        (IN_INT8, changed("weight", element(8)), ["weight' has values outside of -8 to 7"]),
        (IN_INT8, changed("weight_zero_point", element(-9)), ["weight_zero_point' has values outside of -8 to 7"]),
        (IN_INT8, changed("weight_zero_point", lambda a: a[0]), ["weight_zero_point' has shape [2]"]),
        (FP8, changed("weight_scale", lambda a: None), ["weight_scale' is missing", "FP8, a scale a channel"]),
        (FP8, changed("weight", lambda a: a.view(np.int8)), ["weight' has dtype I8, expected F8_E4M3"]),
        (FP8, changed("weight", lambda a: a.T), ["weight' has shape [64, 32], expected [32, 64]"]),
    ],
)
def test_a_damaged_layer(
    workshop: Workshop, tmp_path: Path, form: Linears, change: Callable[[Weights], None], words: list[str]
) -> None:
    path = one_layer(workshop, tmp_path / "c", form)
    weights = load(path)
    change(weights)
    save_file(weights, path / "model.safetensors")
    refused(path, f"{LAYER}.weight", LAYER, "model.safetensors", *words)


def scheme(**changes: Any) -> dict[str, Any]:
    config = INT4.config()
    config["config_groups"]["group_0"]["weights"].update(changes)
    return config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (scheme(actorder="weight"), ["weight_g_idx' has no place (quantization_config: INT4 with zero points"]),
        (scheme(symmetric=True), ["weight_zero_point' has no place"]),
        (scheme(group_size=64), ["weight_scale' has shape [32, 2], expected [32, 1]"]),
        (scheme(num_bits=8), ["weight_packed' has shape [32, 8], expected [32, 16]"]),
        (scheme(num_bits=3), ["'group_0': weights are 'int' of 3 bits"]),
        (scheme(num_bits="4"), ["num_bits is '4'"]),
        (scheme(type="float", num_bits=4), ["weights are 'float' of 4 bits"]),
        (scheme(type="float", num_bits=8), ["FP8 with zero points"]),
        (scheme(strategy="tensor_group"), ["strategy is 'tensor_group'"]),
        (scheme(group_size=None), ["group_size must be from 1"]),
        (scheme(strategy="block", block_structure=[32]), ["block_structure must be [rows, columns]"]),
        (scheme(strategy="block", block_structure=[32, 0]), ["block_structure is 0"]),
        (scheme(actorder="up"), ["actorder is 'up'"]),
        (INT4.config() | {"config_groups": {"a": {"weights": 4}}}, ["'a': expected a JSON object, found 4"]),
        (INT4.config() | {"config_groups": []}, ["config_groups must be an object"]),
        (INT4.config() | {"config_groups": {"a": {"weights": None}}}, ["no quantization_config that says how"]),
        (INT4.config() | {"transform_config": {"u": 1}}, ["transform_config", "not read"]),
        ({}, ["weight_packed' (I32)", "no quantization_config that says how it was quantised"]),
    ],
)
def test_a_config_of_something_else(
    workshop: Workshop, tmp_path: Path, config: dict[str, Any], words: list[str]
) -> None:
    path = one_layer(workshop, tmp_path / "c", INT4)
    edit_config(path, quantization_config=config)
    refused(path, f"{LAYER}.weight", *words)


def test_two_schemes_that_both_fit(workshop: Workshop, tmp_path: Path) -> None:
    """Blocks of 24 and of 20 rows are two downwards in 32: which they are, nothing says."""
    form = Linears(is_float=True, strategy="block", block=(24, 40))
    path, config = one_layer(workshop, tmp_path / "c", form), form.config()
    other = Linears(is_float=True, strategy="block", block=(20, 40)).config()["config_groups"]["group_0"]
    edit_config(path, quantization_config=config | {"config_groups": config["config_groups"] | {"b": other}})
    refused(path, f"{LAYER}.weight", "may be FP8, blocks of 24 x 40 or FP8, blocks of 20 x 40")


def test_experts_of_fbgemm_without_a_word_in_the_config(workshop: Workshop, tmp_path: Path) -> None:
    path, _ = quantised_by_fbgemm(workshop.checkpoint("scout"), tmp_path / "c")
    edit_config(path, quantization_config=None)
    name = "model.layers.1.feed_forward.experts.down_proj"
    refused(path, name, f"{name}' is in FP8", "no quantization_config")


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("gate_up_proj_scale", lambda a: None, ["gate_up_proj_scale' is missing, expected [4, 1, 64]"]),
        ("down_proj_scale", lambda a: a.transpose(0, 2, 1), ["has shape [4, 1, 64], expected [4, 64, 1]"]),
        ("down_proj_scale", element(-1), ["down_proj_scale' has a scale of -1"]),
        ("down_proj_scale", element(0), ["down_proj_scale' has a scale of 0 for codes that are not 0"]),
        ("gate_up_proj", lambda a: a[:, 1:], ["gate_up_proj' has shape"]),
    ],
)  # fmt: skip
def test_damaged_experts_of_fbgemm(
    workshop: Workshop,
    tmp_path: Path,
    part: str,
    change: Callable[[np.ndarray], np.ndarray | None],
    words: list[str],
) -> None:
    path, _ = quantised_by_fbgemm(workshop.checkpoint("scout"), tmp_path / "c")
    weights, name = load(path), f"model.layers.1.feed_forward.experts.{part}"
    if (new := change(weights.pop(name))) is not None:
        weights[name] = np.ascontiguousarray(new)
    save_file(weights, path / "model.safetensors")
    refused(path, name.removesuffix("_scale"), *words)
