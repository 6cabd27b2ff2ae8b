"""The vision tower stage by stage: a healthy one passes everywhere, and a wrong one is caught where it goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from seeing import Room, changed, sign
from tiny_vision import pixels

from l4export.checkpoint import open_checkpoint
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest
from l4export.errors import CheckFailed, InputError
from l4export.inspection.tower_taps import TappedTower, tower_stages
from l4export.parity.by_layer import LayerParityReport, check_layers
from l4export.parity.tower import compare_towers
from l4export.quantization.policy import Policy, Rule
from l4export.reference.vision_tower import HFVisionTower
from workshop import copy_checkpoint

STAGES = ["embedding", "layer 0", "layer 1", "pixel shuffle", "adapter", "projector"]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(tmp_path_factory.mktemp("room"))


def report_of(engine: Path, checkpoint: Path) -> LayerParityReport:
    return check_layers(engine, checkpoint, 6, 2, images="seeded")


@pytest.mark.parametrize("target", ["ort-cpu", "onnx"])
def test_every_stage_of_an_engine_agrees(room: Room, target: str) -> None:
    report = report_of(room.engine("guard", target=target), room.checkpoint("guard"))
    assert report.passed and report.tower is not None and report.tower.first_departure is None
    assert [stage.stage for stage in report.tower.stages] == STAGES
    # float32 sums in another order, through two layers
    assert all(0 < stage.difference_rms < 2e-6 and stage.difference < 2e-6 for stage in report.tower.stages)
    assert {stage.threshold for stage in report.tower.stages} == {1e-5}
    told = json.loads(report.to_json())["tower"]
    assert told["first_departure"] is None and [stage["stage"] for stage in told["stages"]] == STAGES
    assert check_layers(room.engine("guard"), room.checkpoint("guard"), 6, 2).tower is None


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("vision_model.positional_embedding_vlm", "embedding"),
        ("vision_model.model.layers.0.self_attn.k_proj.weight", "layer 0"),
        ("vision_model.model.layers.1.mlp.fc2.bias", "layer 1"),
        ("vision_model.layernorm_post.weight", "pixel shuffle"),
        ("vision_model.vision_adapter.mlp.fc2.weight", "adapter"),
        ("multi_modal_projector.linear_1.weight", "projector"),
    ],
)
def test_the_stage_with_one_wrong_tensor_is_named(room: Room, tmp_path: Path, name: str, stage: str) -> None:
    other = changed(room.checkpoint("guard"), tmp_path / "c", name, lambda values: values[..., ::-1])
    report = report_of(room.engine("guard"), other)
    assert report.tower is not None and report.tower.first_departure == stage and not report.passed
    assert report.failures[0].startswith(f"vision tower: {stage} is the first to depart: by ")
    at = STAGES.index(stage)
    assert all(item.difference < 2e-6 for item in report.tower.stages[:at])
    assert all(item.departs for item in report.tower.stages[at:])


def test_a_tower_that_overflows_is_caught_where_it_begins(room: Room, tmp_path: Path) -> None:
    """float16 ends at 65504: the reference, in float32, goes on."""
    other = room.checkpoint("guard")
    for name in ("self_attn.o_proj.bias", "mlp.fc2.bias"):
        tensor = f"vision_model.model.layers.1.{name}"
        other = changed(other, tmp_path / name, tensor, lambda values: values + np.float32(5e4))
    build(other, tmp_path / "e", BuildOptions(max_context=128, vision_dtype="fp16"))
    with pytest.raises(CheckFailed, match=r"vision tower: layer 1 is the first to depart: .* features are not finite"):
        report_of(tmp_path / "e", other)


def test_thresholds_are_those_of_the_towers_precision(room: Room) -> None:
    half = report_of(room.engine("guard", vision_dtype="fp16"), room.checkpoint("guard")).tower
    assert half is not None and half.first_departure is None
    assert all(stage.threshold == 1e-2 and 1e-5 < stage.difference < 1e-2 for stage in half.stages)
    policy = Policy((Rule(("vision_model.*.fc?.weight",), "int4", 16),))
    rough = report_of(room.engine("guard", policy=policy), room.checkpoint("guard")).tower
    assert rough is not None and rough.first_departure is None
    assert {stage.threshold for stage in rough.stages} == {None} and rough.stages[1].difference > 1e-3


def test_stages_are_the_hidden_states_of_transformers(room: Room) -> None:
    """What is compared is told by transformers itself, too."""
    tower, (tile,) = HFVisionTower(open_checkpoint(room.checkpoint("guard"))), pixels(1, 16)
    import torch

    with torch.inference_mode():
        states = tower.model(torch.from_numpy(tile[None]), output_hidden_states=True)
    found = tower.stages(tile)
    assert list(tower_stages(load_manifest(room.engine("guard")).vision)) == STAGES  # type: ignore[arg-type]
    assert set(found) == set(STAGES)
    for stage, expected in zip(STAGES[:3], states.hidden_states, strict=True):
        np.testing.assert_array_equal(found[stage], expected[0].numpy())
    np.testing.assert_array_equal(found["adapter"], states.last_hidden_state[0].numpy())
    np.testing.assert_array_equal(found["projector"], tower.features(tile[None]))


def test_figures_are_those_of_their_definitions(room: Room, tmp_path: Path) -> None:
    """Over all tiles at once, in float64."""
    name = "vision_model.model.layers.0.mlp.fc1.weight"
    other = changed(room.checkpoint("guard"), tmp_path / "c", name, lambda values: values * np.float32(1.5))
    engine, tiles = room.engine("guard"), pixels(3, 16)
    manifest = load_manifest(engine)
    found, features = compare_towers(engine, manifest, other, tiles, None)
    reference, tapped = HFVisionTower(open_checkpoint(other)), TappedTower(engine, manifest)
    sides = [[side.stages(tile) for tile in tiles] for side in (reference, tapped)]
    for stage in found.stages:
        expected, given = (np.concatenate([of[stage.stage] for of in side]).astype(np.float64) for side in sides)
        assert stage.difference == pytest.approx(np.abs(given - expected).max() / np.abs(expected).max())
        rms = [np.sqrt(np.mean(values**2)) for values in (given - expected, expected)]
        assert stage.difference_rms == pytest.approx(rms[0] / rms[1])
    assert features.shape == (12, 64) and found.failures == ()
    np.testing.assert_array_equal(features, reference.features(tiles))


def test_a_graph_that_does_not_say_what_it_holds_is_refused(room: Room, tmp_path: Path) -> None:
    engine = copy_checkpoint(room.engine("guard"), tmp_path / "e")
    model = onnx.load(engine / "vision.onnx", load_external_data=False)
    for value in model.graph.value_info:
        del value.metadata_props[:]
    sign(engine, "vision.onnx", model.SerializeToString())
    with pytest.raises(InputError, match="the vision tower has no value of its embedding; build the engine again"):
        report_of(engine, room.checkpoint("guard"))


def test_the_command_shows_the_tower(room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "vision_model.model.layers.1.mlp.fc2.bias"
    other = changed(room.checkpoint("guard"), tmp_path / "c", name, lambda values: values + 1)
    start = ["parity", str(room.engine("guard")), "--reference", str(other), "--prefill", "6", "--decode", "2"]
    with pytest.raises(SystemExit) as caught:
        main([*start, "--stream", "--images", "seeded"])
    shown, told = capsys.readouterr()
    assert caught.value.code == 1 and "vision tower: layer 1 is the first to depart" in told
    assert "layer 1 <- first to depart" in shown and "pixel shuffle" in shown and "1e-05" in shown
