"""Parity with images: what the figures are, and that each fails for the fault that it is there for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture
from PIL import Image
from seeing import Room, changed, processed, reverse_features

from l4export.checkpoint.sample import write_sample
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest
from l4export.errors import CheckFailed, EnvironmentLacks, InputError
from l4export.parity import images as compared_images
from l4export.parity.by_layer import check_layers
from l4export.parity.image_prompt import image_prompt, seeded_pictures
from l4export.parity.image_thresholds import image_thresholds
from l4export.parity.whole_model import ParityReport, check_parity
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.images.processor import ImageProcessor
from l4export.runtimes.images.settings import ImageSettings
from l4export.runtimes.random_text import random_text
from workshop import copy_checkpoint


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(tmp_path_factory.mktemp("room"))


@pytest.mark.parametrize(
    ("variant", "layout"), [("scout", "chunked"), ("scout", "concat"), ("maverick", "static"), ("guard", "static")]
)
def test_engines_see_what_transformers_sees(room: Room, variant: str, layout: str) -> None:
    engine = room.engine(variant, kv_layout=layout)
    report = check_parity(engine, room.checkpoint(variant), 20, 8, images="seeded")
    assert report.passed and report.images is not None
    assert report.images.grids == ((1, 1), (1, 2), (2, 3))
    assert (report.images.tiles, report.images.feature_rows) == (11, 44)
    assert report.images.feature_difference < 1e-5 and report.images.largest_feature > 0.1
    # 44 features and, per image, start, end and <|image|>; 2 separators in the second, 6 in the third
    assert report.prefill_tokens == report.prefill.positions == 20 + 44 + 9 + 2 + 6
    assert report.thresholds == {
        "feature_difference": 1e-5,
        "max_relative_difference": 1e-4,
        "kl_max": 1e-6,
        "top1_agreement": 1.0,
        "greedy_prefix": 1.0,
    }
    told = json.loads(report.to_json())["images"]["processor"]
    assert told["ids_agreement"] is None and "Torchvision" in told["not_compared"]["ids_agreement"]


def test_images_are_files_too_and_a_slice_sees(room: Room, tmp_path: Path) -> None:
    Image.fromarray(picture(20, 40)).save(tmp_path / "a.png")
    build(room.checkpoint("maverick"), tmp_path / "e", BuildOptions(max_context=64, layers=(1, 3)))
    report = check_parity(tmp_path / "e", room.checkpoint("maverick"), 4, 2, images=[tmp_path / "a.png"])
    assert report.passed and report.images is not None and report.images.grids == ((2, 3),)


def test_without_a_tokenizer_the_tokens_around_tiles_are_random(room: Room, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(room.checkpoint("guard"), tmp_path / "c")
    (checkpoint / "tokenizer.json").unlink()
    build(checkpoint, tmp_path / "e", BuildOptions(max_context=128))
    report = check_parity(tmp_path / "e", checkpoint, 20, 2, images="seeded")
    assert report.passed and report.images is not None and report.prefill_tokens == 20 + 44 + 9 + 2 + 6
    assert "no tokenizer" in report.images.processor.not_compared["ids_agreement"]


def test_halves_have_thresholds_of_their_own(room: Room) -> None:
    """float16 in the tower alone reaches logits; a tower in float32 gives a decoder in float16 rounded features."""
    for options, features, logits in (
        ({"vision_dtype": "fp16"}, 1e-2, 3e-2),
        ({"dtype": "fp16", "vision_dtype": "fp32"}, 2**-10, 3e-2),
    ):
        report = check_parity(room.engine("scout", **options), room.checkpoint("scout"), 20, 4, images="seeded")
        limits = report.thresholds
        assert (limits["feature_difference"], limits["max_relative_difference"]) == (features, logits)
        assert report.passed and report.images is not None and report.images.feature_difference > 1e-5


def test_a_quantised_tower_is_held_to_what_its_numbers_can(room: Room) -> None:
    weights = "vision_model.model.layers.*_proj.weight", "vision_model.*.fc?.weight"
    engine, checkpoint = room.engine("guard", policy=Policy((Rule(weights, "int8"),))), room.checkpoint("guard")
    report = check_parity(engine, checkpoint, 20, 4, images="seeded")
    assert report.thresholds == {"feature_difference": 0.1} and not report.failures and report.images is not None
    assert report.images.feature_difference > 1e-4
    with pytest.raises(InputError, match=r"--dequantized: the vision tower is quantised too"):
        check_parity(engine, checkpoint, 20, 4, images="seeded", dequantized=True)
    manifest = load_manifest(room.engine("guard", policy=Policy((Rule(weights, "int4"),))))
    assert image_thresholds(manifest, dequantized=False) == {"ids_agreement": 1.0, "pixel_difference": 0.0}


def test_a_quantised_decoder_leaves_the_tower_to_be_judged(room: Room) -> None:
    engine, checkpoint = room.engine("guard", policy=standard_policy("int8")), room.checkpoint("guard")
    against_checkpoint = check_parity(engine, checkpoint, 20, 4, images="seeded")
    dequantised = check_parity(engine, checkpoint, 20, 4, images="seeded", dequantized=True)
    assert against_checkpoint.thresholds == {"feature_difference": 1e-5}
    assert (
        against_checkpoint.verdict == "not judged" and "nothing is demanded of its logits" in against_checkpoint.why[0]
    )
    assert dequantised.thresholds == {"feature_difference": 1e-5, "kl_mean": 5e-2} and dequantised.passed


@pytest.mark.parametrize(("variant", "layout"), [("scout", "chunked"), ("maverick", "static")])
def test_layer_by_layer_the_engine_sees_the_same(room: Room, variant: str, layout: str) -> None:
    report = check_layers(room.engine(variant, kv_layout=layout), room.checkpoint(variant), 20, 8, images="seeded")
    assert report.passed and report.first_departure is None and report.images is not None
    assert report.images.feature_difference < 1e-5 and report.logits.positions == 20 + 44 + 17 + 8
    assert max(layer.hidden for layer in report.layers) < 1e-5


# Faults, and the figures that show them


@pytest.mark.parametrize(
    "name", ["vision_model.model.layers.1.mlp.fc1.weight", "multi_modal_projector.linear_1.weight"]
)
def test_a_wrong_weight_of_the_tower_shows_in_the_features(room: Room, tmp_path: Path, name: str) -> None:
    other = changed(room.checkpoint("scout"), tmp_path / "c", name, lambda values: values * np.float32(1.01))
    report = check_parity(room.engine("scout", kv_layout="chunked"), other, 20, 4, images="seeded")
    assert report.failures[0].startswith("images feature_difference") and not report.passed


def test_features_at_other_places_show_in_the_logits(room: Room, tmp_path: Path) -> None:
    """The tower is right, and the decoder takes its rows in reverse."""
    engine = copy_checkpoint(room.engine("scout", kv_layout="chunked"), tmp_path / "e")
    reverse_features(engine)
    report = check_parity(engine, room.checkpoint("scout"), 20, 4, images="seeded")
    assert report.images is not None and report.images.feature_difference < 1e-5
    assert report.failures and all(words.startswith(("prefill", "decode", "greedy")) for words in report.failures)
    assert report.prefill.max_relative_difference > 0.01
    layers = check_layers(engine, room.checkpoint("scout"), 20, 4, images="seeded")
    assert layers.first_departure == 0 and layers.images is not None and not layers.images.failures(layers.thresholds)


def test_features_that_are_no_numbers_are_refused(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflown(self: ImageFeatures, images: Any) -> list[np.ndarray]:
        rows = [np.zeros((count, 64), np.float32) for count in images.feature_rows]
        rows[1][5] = np.inf
        return rows

    monkeypatch.setattr(ImageFeatures, "of", overflown)
    with pytest.raises(CheckFailed, match="features of tile 2 are not finite"):
        check_parity(room.engine("guard"), room.checkpoint("guard"), 20, 4, images="seeded")


def test_what_transformers_processor_makes_is_compared_where_it_runs(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels of another table, another text: each fails its figure. Nothing is claimed where nothing ran."""

    def report(**given: float) -> ParityReport:
        return check_parity(room.engine("guard"), room.checkpoint("guard"), 20, 2, thresholds=given, images="seeded")

    made = processed(room.engine("guard"))
    monkeypatch.setattr(compared_images, "transformers_tiles", lambda path, pictures: made(pictures)[0])
    monkeypatch.setattr(compared_images, "transformers_ids", lambda path, text, pictures: made(pictures, text)[1])
    right = report()
    assert right.passed and right.images is not None and not right.images.processor.not_compared
    assert (right.images.processor.pixel_difference, right.images.processor.ids_agreement) == (0, 1)
    assert (right.thresholds["pixel_difference"], right.thresholds["ids_agreement"]) == (0, 1)

    monkeypatch.setattr(compared_images, "transformers_tiles", lambda path, pictures: made(pictures)[0] + 2**-7)
    monkeypatch.setattr(compared_images, "transformers_ids", lambda path, text, pictures: made(pictures, text)[1][:-1])
    assert [words.split()[:2] for words in report().failures] == [
        ["images", "ids_agreement"],
        ["images", "pixel_difference"],
    ]

    def missing(*arguments: Any) -> Any:
        raise EnvironmentLacks("no torchvision")

    monkeypatch.setattr(compared_images, "transformers_tiles", missing)
    monkeypatch.setattr(compared_images, "transformers_ids", missing)
    assert "pixel_difference" not in report().thresholds
    assert report().images.processor.not_compared["ids_agreement"] == "no torchvision"  # type: ignore[union-attr]
    with pytest.raises(EnvironmentLacks, match=r"--threshold pixel_difference: no torchvision"):
        report(pixel_difference=0.0)


# What is refused


def test_what_sees_nothing_is_refused_by_name(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample(tmp_path / "text", "guard", "tiny", seed=3)
    blind = room.engine("guard", vision="none")
    with pytest.raises(InputError, match=r"sees no images; build it from a checkpoint with a vision tower"):
        check_parity(blind, room.checkpoint("guard"), 4, 2, images="seeded")
    with pytest.raises(InputError, match=r"--threshold feature_difference: not one of"):
        check_parity(blind, room.checkpoint("guard"), 4, 2, {"feature_difference": 1.0})
    with pytest.raises(InputError, match=r"text: has no vision tower; name the checkpoint"):
        check_parity(room.engine("guard"), tmp_path / "text", 4, 2, images="seeded")
    with pytest.raises(InputError, match=r"another model than the engine's \(rope_theta differs\)"):
        other = copy_checkpoint(room.checkpoint("guard"), tmp_path / "other")
        config = json.loads((other / "config.json").read_text())
        config["vision_config"]["rope_parameters"]["rope_theta"] = 500.0
        (other / "config.json").write_text(json.dumps(config))
        check_parity(room.engine("guard"), other, 4, 2, images="seeded")
    with pytest.raises(InputError, match="the runtime of ort-cpu engines sees none"):
        prompt = image_prompt(room.engine("guard"), load_manifest(room.engine("guard")), "seeded", 4, 2, 0)
        compared_images.compare_images(load_manifest(room.engine("guard")), None, room.checkpoint("guard"), prompt)
    for what in ("a.png", picture(4, 5), Path("a.png")):
        with pytest.raises(InputError, match=r"images is .*: give a sequence of images, or 'seeded'"):
            check_parity(room.engine("guard"), room.checkpoint("guard"), 4, 2, images=what)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="image 1: "):
        check_parity(room.engine("guard"), room.checkpoint("guard"), 4, 2, images=[b"no image"])
    monkeypatch.setattr(ImageFeatures, "of", lambda *_: pytest.fail("the tower ran"))
    with pytest.raises(InputError, match=r"--prefill 70 --decode 2 and 61 tokens of images are more .* of 128"):
        check_parity(room.engine("guard"), room.checkpoint("guard"), 70, 2, images="seeded")


def test_text_alone_has_no_image_tokens(room: Room) -> None:
    engine = room.engine("guard")
    token = load_manifest(engine).vision.image_token_id  # type: ignore[union-attr]
    seed = next(seed for seed in range(9) if token in np.random.default_rng(seed).integers(0, 256, 100))
    report = check_parity(engine, room.checkpoint("guard"), 90, 10, seed=seed)
    assert report.passed and report.images is None
    assert token not in random_text(load_manifest(engine), 100, seed)


def test_the_command_shows_what_is_seen(room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        start = "parity", room.engine("guard"), "--reference", room.checkpoint("guard"), "--prefill", 9, "--decode", 2
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in (*start, *arguments)])
        return int(caught.value.code or 0), *capsys.readouterr()

    Image.fromarray(picture(20, 40)).save(tmp_path / "a.png")
    code, out, _ = run("--image", tmp_path / "a.png", "--image", tmp_path / "a.png", "-o", tmp_path / "report.json")
    assert code == 0 and "grids of 2 x 3, 2 x 3: 14 tiles, 56 tokens with features" in out
    assert "not compared" in out and "Torchvision" in out and "parity: passed" in out
    report = json.loads((tmp_path / "report.json").read_text())["details"]
    assert report["images"]["feature_difference"] < report["thresholds"]["feature_difference"] == 1e-5
    code, out, err = run("--images", "seeded", "--threshold", "feature_difference=1e-9")
    assert code == 1 and "parity: FAILED" in out and "images feature_difference" in err
    code, out, _ = run("--images", "seeded", "--stream")
    assert code == 0 and "grids of 1 x 1, 1 x 2, 2 x 3: 11 tiles" in out and "parity: passed" in out
    for arguments, word in (
        (("--images", "seeded", "--image", tmp_path / "a.png"), "--images: --image names others"),
        (("--image", tmp_path / "none.png"), "none.png"),
    ):
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and word in err


def test_seeded_pictures_are_of_several_sizes() -> None:
    shapes = {tuple(picture.shape for picture in seeded_pictures(336, seed)) for seed in range(5)}
    assert len(shapes) == 5
    processor = ImageProcessor(ImageSettings(tile=28))
    for seed in range(20):
        images = processor(seeded_pictures(28, seed))
        assert images.grids == ((1, 1), (1, 2), (2, 3)) and len(set(images.digests)) == 3
    again, same = (seeded_pictures(16, 7) for _ in range(2))
    assert all(np.array_equal(*pair) for pair in zip(again, same, strict=True))
