"""The tower's reference graph, and every target's, against transformers' own in float32."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_vision import SHAPES, WIDTH, pixels, transformers_tower, vision_raw, whole_raw

from l4export.checkpoint.hf_vision import vision_from_hf
from l4export.compiler.pipeline import run_passes, vision_pipeline
from l4export.model.tensors import vision_tensors
from l4export.model.vision_config import VisionConfig
from l4export.model.vision_tower import build_vision_tower
from l4export.weights.recipes import Recipe, Source
from tiny_graphs import UnreadableData, loaded, source

FLOAT = ir.DataType.FLOAT
# Relative to the largest feature: float32 sums in another order, through up to three layers and the adapter.
ROUNDING = 1e-5


def config_of(raw: dict[str, Any]) -> VisionConfig:
    return vision_from_hf(whole_raw(raw), "config.json", 16)


def graph_of(raw: dict[str, Any], state: dict[str, np.ndarray], dtype: ir.DataType = FLOAT) -> ir.Model:
    def weights(name: str, shape: tuple[int, ...]) -> Recipe:
        assert state[name].shape == shape
        return source(state[name])

    return build_vision_tower(config_of(raw), WIDTH, weights, dtype, FLOAT)


def state_of(tower: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in tower.state_dict().items()}


def features_of(tower: Any, tiles: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return np.asarray(tower(torch.from_numpy(tiles)))


def worst(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a share of the largest feature."""
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("target", [None, "ort-cpu", "onnx"])
@pytest.mark.parametrize("shape", SHAPES)
def test_its_features_are_those_of_transformers(shape: str, target: str | None) -> None:
    raw = vision_raw(**SHAPES[shape])
    tower = transformers_tower(raw)
    model = graph_of(raw, state_of(tower))
    if target:
        run_passes(model, vision_pipeline(target))
    session = loaded(model)
    for tiles in (1, 5, 17):
        values = pixels(tiles, raw["image_size"])
        (got,) = session.run(None, {"pixel_values": values})
        assert got.shape == (tiles * config_of(raw).rows_per_tile, WIDTH)
        assert worst(got, features_of(tower, values)) <= ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ort-cpu", "onnx"])
def test_as_deep_as_the_released_tower(target: str) -> None:
    """34 layers, heads of 88 channels, 577 tokens a tile, a quarter of the width."""
    raw = vision_raw(hidden_size=352, num_hidden_layers=34, intermediate_size=1408, image_size=336, patch_size=14)
    tower = transformers_tower(raw)
    model = graph_of(raw, state_of(tower))
    run_passes(model, vision_pipeline(target))
    values = pixels(2, 336)
    (got,) = loaded(model).run(None, {"pixel_values": values})
    assert worst(got, features_of(tower, values)) <= ROUNDING


def test_tiles_can_be_cut_into_any_batches() -> None:
    raw = vision_raw()
    model = graph_of(raw, state_of(transformers_tower(raw)))
    run_passes(model, vision_pipeline("ort-cpu"))
    session, values = loaded(model), pixels(3, 16)
    together = session.run(None, {"pixel_values": values})[0]
    apart = [session.run(None, {"pixel_values": values[i : i + 1]})[0] for i in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(apart))


def test_weights_in_bfloat16_are_taken_as_they_are() -> None:
    import torch

    raw = vision_raw()
    tower = transformers_tower(raw)
    stored = {name: array.astype(ml_dtypes.bfloat16) for name, array in state_of(tower).items()}
    tower.load_state_dict({name: torch.from_numpy(array.astype(np.float32)) for name, array in stored.items()})
    values = pixels(2, 16)
    got = loaded(graph_of(raw, stored)).run(None, {"pixel_values": values})[0]
    assert worst(got, features_of(tower, values)) <= ROUNDING


@pytest.mark.parametrize("target", ["ort-cpu", "onnx"])
def test_it_computes_in_float16(target: str) -> None:
    raw = vision_raw()
    tower, values = transformers_tower(raw), pixels(2, 16)
    model = graph_of(raw, state_of(tower), ir.DataType.FLOAT16)
    run_passes(model, vision_pipeline(target))
    got = loaded(model).run(None, {"pixel_values": values})[0]
    # 11 bits at every step of two layers and the adapter
    assert got.dtype == np.float32 and 1e-5 < worst(got, features_of(tower, values)) <= 1e-2


@pytest.mark.parametrize("target", ["onnx", "tensorrt-rtx"])
def test_standard_targets_have_standard_operators_alone(target: str) -> None:
    raw = vision_raw()
    model = graph_of(raw, state_of(transformers_tower(raw)))
    run_passes(model, vision_pipeline(target))
    assert {node.domain for node in model.graph} == {""} and not model.functions
    if target == "onnx":
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
    else:
        attentions = [node for node in model.graph if node.op_type == "Attention"]
        assert len(attentions) == 2 and all(node.attributes.get_int("TRT_decomposable") == 1 for node in attentions)


def test_it_asks_for_every_tensor_once_and_reads_none() -> None:
    config, asked = config_of(vision_raw()), list[str]()

    def weights(name: str, shape: tuple[int, ...]) -> Recipe:
        asked.append(name)
        return Source(UnreadableData(shape, np.float32))

    model = build_vision_tower(config, WIDTH, weights, FLOAT, FLOAT)
    run_passes(model, vision_pipeline("ort-cpu"))
    assert asked == list(vision_tensors(config, WIDTH))
