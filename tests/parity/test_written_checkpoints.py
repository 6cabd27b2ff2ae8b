"""`parity` takes a checkpoint for other programs as it takes an engine: same report, same exit codes, same demands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from signed_checkpoints import FORMS, sign, written

from l4export.checkpoint.sample import write_sample
from l4export.cli import main
from l4export.errors import InputError
from l4export.parity.by_layer import check_layers
from l4export.parity.whole_model import check_parity
from quantised_checkpoints import float_of
from workshop import Workshop


@pytest.fixture
def scout(workshop: Workshop, tmp_path: Path) -> Path:
    return written(workshop.checkpoint("scout"), tmp_path / "scout", FORMS["W4A16"])


@pytest.mark.parametrize(("variant", "form"), [("scout", "W4A16"), ("maverick", "FP8"), ("guard", "W8A16")])
def test_it_is_held_to_its_own_codes(workshop: Workshop, tmp_path: Path, variant: str, form: str) -> None:
    """As an engine in float32 is, FP8 without rounded activations: a code times its scale is exact in float32."""
    path = written(workshop.checkpoint(variant), tmp_path / "w", FORMS[form])
    report = check_parity(path, workshop.checkpoint(variant), 50, 30, dequantized=True)
    assert report.passed and set(report.thresholds) == {
        *("max_relative_difference", "kl_max", "top1_agreement", "greedy_prefix")
    }
    assert report.prefill.max_relative_difference < 1e-5 > report.decode.max_relative_difference  # type: ignore[union-attr]
    assert (report.chunk_boundaries, report.greedy_prefix) == (0 if variant == "guard" else 4, 1)
    assert report.provider.startswith("transformers 5.") and report.provider.endswith(", float32")


def test_against_the_floats_the_figures_are_its_quality(workshop: Workshop, scout: Path) -> None:
    """Nothing is demanded. Against floats that are its own numbers, which NumPy has made, nothing is lost."""
    report = check_parity(scout, workshop.checkpoint("scout"), 30, 8)
    assert report.verdict == "not judged" and report.thresholds == {} and report.prefill.kl_mean > 1e-3
    same = check_parity(scout, float_of(scout), 30, 8, thresholds={"max_relative_difference": 1e-5})
    assert same.passed and same.routing_ties == 0


@pytest.mark.parametrize("name", ["experts.2.up_proj.weight_packed", "shared_expert.down_proj.weight_scale"])
def test_one_wrong_tensor_is_noticed(workshop: Workshop, scout: Path, name: str) -> None:
    """By the comparison with its numbers as they were: the codes themselves say nothing of what was meant."""
    weights = load_file(scout / "model.safetensors")
    weights[f"model.layers.1.feed_forward.{name}"] = np.ascontiguousarray(
        weights[f"model.layers.1.feed_forward.{name}"][::-1]
    )
    save_file(weights, scout / "model.safetensors")
    sign(scout)
    assert not check_parity(scout, float_of(scout), 30, 8, thresholds={"max_relative_difference": 1e-4}).passed


def test_a_float_weight_that_is_not_the_references_is_noticed(workshop: Workshop, scout: Path) -> None:
    weights = load_file(scout / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][::-1].copy()
    save_file(weights, scout / "model.safetensors")
    sign(scout)
    assert not check_parity(scout, workshop.checkpoint("scout"), 30, 8, dequantized=True).passed


@pytest.mark.parametrize("dequantized", [False, True])
def test_with_images(tmp_path: Path, dequantized: bool) -> None:
    """The tower is the source's, in its own dtype; the logits are of features at their places."""
    write_sample(tmp_path / "source", "maverick", "tiny", seed=3, vision=True)
    path = written(tmp_path / "source", tmp_path / "w", FORMS["W4A16"])
    reference = tmp_path / "source" if dequantized else float_of(path)
    limits = {} if dequantized else {"max_relative_difference": 1e-4}
    report = check_parity(path, reference, 30, 12, limits, dequantized=dequantized, images="seeded")
    assert report.passed and report.prefill_tokens > 60 and report.images is not None
    assert report.images.tiles == 11 and report.images.feature_difference < 1e-6
    assert report.prefill.max_relative_difference < 1e-5


def test_a_reference_of_another_architecture_is_refused(workshop: Workshop, scout: Path) -> None:
    with pytest.raises(InputError, match=r"another model than the engine's \(moe_layers differs\)"):
        check_parity(scout, workshop.checkpoint("maverick"), 4, 0)


def test_layer_by_layer_is_refused(workshop: Workshop, scout: Path) -> None:
    with pytest.raises(InputError, match=r"^--stream: .* is a checkpoint, which transformers runs as a whole"):
        check_layers(scout, workshop.checkpoint("scout"))


def test_the_command(workshop: Workshop, scout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 and the same JSON as of an engine; 1 where a threshold is missed; 2 for what does not apply."""
    reference = workshop.checkpoint("scout")

    def run(*arguments: str) -> tuple[object, str]:
        given = ("parity", str(scout), "--reference", str(reference), "--prefill", "20", "--decode", "4", *arguments)
        with pytest.raises(SystemExit) as ended:
            main([*given, "--json"])
        return ended.value.code, capsys.readouterr().out

    code, printed = run("--dequantized")
    report: dict[str, Any] = json.loads(printed)
    of_engine = check_parity(workshop.engine_path("scout", "static"), reference, 4, 0)
    assert not code and report["details"].keys() == json.loads(of_engine.to_json()).keys()
    assert run("--threshold", "kl_max=1e-9")[0] == 1
    assert run("--stream") == run("--provider", "cpu") == (2, "")
