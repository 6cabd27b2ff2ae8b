"""Conversations to measure on: which tokens they are, which count, what stands at images, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversations import (
    ASSISTANT,
    END,
    USER,
    said,
    shown_and_answered,
    talking_checkpoint,
    words,
    write_conversations,
)
from image_client import transformers_logits
from PIL import Image
from seeing import block, seen

from l4export.calibration import weight_codes
from l4export.calibration.text import CalibrationText, TextReader
from l4export.checkpoint import open_checkpoint
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.inputs import open_inputs
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.quantization.policy import standard_policy
from l4export.reference.streamed_model import StreamedReference
from l4export.reference.vision_tower import HFVisionTower

PATCH = 236


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking_checkpoint(tmp_path_factory.mktemp("room") / "c")


@pytest.fixture
def folder(checkpoint: Path) -> Path:
    """Where the pictures are."""
    return checkpoint.parent


def read(checkpoint: Path, path: Path, longest: int = 8192) -> CalibrationText:
    opened = open_checkpoint(checkpoint)
    return TextReader(checkpoint, opened.config, opened.vision_config()).windows("--text", path, longest)


def ids_of(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


# What conversations are


def test_tokens_and_answers_are_those_that_are_written_down_here(checkpoint: Path, folder: Path) -> None:
    text = read(checkpoint, shown_and_answered(folder / "m.jsonl"))
    one, five = (seen(checkpoint, [size]) for size in ((10, 12), (20, 30)))
    assert (one.tile_counts, five.tile_counts) == ((1,), (5,))
    answers = [ids_of(words(70, seed)) for seed in (2, 3, 5)]
    first = [USER, *block(one, 0), *ids_of(words(5, 1)), END, ASSISTANT, *answers[0], END]
    second = [USER, 9, *block(one, 0), END, ASSISTANT, *answers[1], END]
    third = [USER, *block(five, 0), *ids_of(words(3, 4)), END, ASSISTANT, *answers[2], END]
    assert text.sequences == (tuple(first), (*second, *third))
    # of 70 words each, and the token that ends them, the one before is where it is predicted
    expected = [list(range(len(first) - 72, len(first) - 1))]
    expected.append(
        [*range(len(second) - 72, len(second) - 1), *range(len(second + third) - 72, len(second + third) - 1)]
    )
    assert [window.positions.tolist() for window in text.windows] == expected
    assert text.predicted == 3 * 71 and text.shows_images
    targets = [np.asarray(window.ids)[window.positions + 1] for window in text.windows]
    assert not any(np.isin([230, 231, 232, 233, 234, PATCH], target).any() for target in targets)


def test_an_image_that_an_assistant_shows_is_not_scored(checkpoint: Path, folder: Path) -> None:
    messages = [said("user", "w1"), said("assistant", words(80, 1), " ", "b.png", words(60, 2))]
    text = read(checkpoint, write_conversations(folder / "m.jsonl", messages))
    (window,) = text.windows
    ids = np.asarray(window.ids)
    assert np.array_equal(ids[window.positions + 1], [*ids_of(words(80, 1)), *ids_of(words(60, 2)), END])


def test_text_alone_needs_no_tower(checkpoint: Path, folder: Path) -> None:
    path = write_conversations(folder / "m.jsonl", [said("user", "w1 w2"), said("assistant", words(150, 1))])
    reader = TextReader(checkpoint, open_checkpoint(checkpoint).config)
    text = reader.for_weights(path)
    assert text.windows[0].positions.tolist() == list(range(4, 4 + 151)) and not text.shows_images
    assert text.images(0) is None
    plain = CalibrationText(text.name, text.sequences)
    assert plain.to_dict() == text.to_dict() and len(plain.windows[0].positions) == len(text.sequences[0]) - 1


def test_the_digest_tells_other_images(checkpoint: Path, folder: Path) -> None:
    path = shown_and_answered(folder / "m.jsonl")
    before = read(checkpoint, path).to_dict()
    assert read(checkpoint, path).to_dict() == before
    Image.fromarray(np.full((10, 12, 3), 99, np.uint8)).save(folder / "other.png")
    path.write_text(path.read_text().replace("a.png", "other.png"))
    other = read(checkpoint, path).to_dict()
    assert other["tokens"] == before["tokens"] and other["sha256"] != before["sha256"]


def test_an_image_that_changes_meanwhile_is_refused(checkpoint: Path, folder: Path) -> None:
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(folder / "c.png")
    path = write_conversations(folder / "m.jsonl", [said("user", "c.png"), said("assistant", words(140, 1))])
    text = read(checkpoint, path)
    assert text.images(0) is not None
    Image.fromarray(np.ones((10, 12, 3), np.uint8)).save(folder / "c.png")
    with pytest.raises(InputError, match=r"m.jsonl: line 1: an image has changed since it was read; start again"):
        text.images(0)


def test_damage_is_measured_on_the_first_ones(checkpoint: Path, folder: Path) -> None:
    talk = [said("user", "a.png"), said("assistant", words(900, 1))]
    path = write_conversations(folder / "m.jsonl", talk, talk, talk, talk)
    reader = TextReader(checkpoint, open_checkpoint(checkpoint).config, open_checkpoint(checkpoint).vision_config())
    text = reader.for_damage(path)
    assert len(text.sequences) == len(text.conversations) == 3  # the third begins below 2048 tokens
    assert len(reader.for_weights(path).sequences) == 4


# What stands at images


def inputs_embeds(checkpoint: Path, ids: np.ndarray, tiles: np.ndarray, scratch: Path) -> np.ndarray:
    """What transformers' whole model gives its language model: embedded tokens, merged with features."""
    from transformers import Llama4TextModel

    found: list[np.ndarray] = []
    forward = Llama4TextModel.forward

    def kept(self: Any, *arguments: Any, **named: Any) -> Any:
        found.append(named["inputs_embeds"].numpy().copy())
        return forward(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Llama4TextModel, "forward", kept)
        transformers_logits(checkpoint, ids[None], tiles, scratch)
    return found[0][0]


def test_what_the_first_layer_is_calibrated_on_is_what_transformers_merges(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[list[np.ndarray]] = []
    hidden = weight_codes._Run.hidden

    def kept(self: Any, done: int) -> Any:
        found = hidden(self, done)
        streams.append([stream.numpy().copy() for stream in found])
        return found

    monkeypatch.setattr(weight_codes._Run, "hidden", kept)
    path = shown_and_answered(folder / "m.jsonl")
    options = BuildOptions(max_context=256, policy=standard_policy("int4", 16), calibrate=path)
    build(checkpoint, tmp_path / "e", options)
    text = read(checkpoint, path)
    ((*found,),) = streams
    for index, stream in enumerate(found):
        ids, images = np.asarray(text.sequences[index]), text.images(index)
        assert images is not None
        expected = inputs_embeds(checkpoint, ids, images.tiles, tmp_path / "scratch")
        # both streams begin alike; the tower sees all tiles at once there, and one at a time here
        np.testing.assert_array_equal(stream[0], stream[1])
        np.testing.assert_allclose(stream[0], expected, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(stream[0][ids != PATCH], expected[ids != PATCH])
    told = json.loads((tmp_path / "e" / "calibration.json").read_text())
    assert told["text"] == text.to_dict() and {of["tokens"] for of in told["matrices"]} == {text.tokens}
    assert np.mean([of["error"] for of in told["matrices"]]) < np.mean([of["plain_error"] for of in told["matrices"]])


@pytest.mark.slow
def test_the_tower_is_loaded_once_and_freed(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, freed = [], []
    monkeypatch.setattr(HFVisionTower, "__del__", lambda self: freed.append(self.model is not None), raising=False)
    init = HFVisionTower.__init__
    monkeypatch.setattr(HFVisionTower, "__init__", lambda self, c: (made.append(1), init(self, c))[1])
    options = BuildOptions(max_context=256, policy=standard_policy("int4", 16))
    started: list[int] = []

    def layer(*_: Any) -> list[Any]:
        started.append(len(freed))
        return []

    monkeypatch.setattr("l4export.calibration.layer.calibrate_layer", layer)
    build(checkpoint, tmp_path / "e", dataclasses.replace(options, calibrate=shown_and_answered(folder / "m.jsonl")))
    assert made == [1] and started == [1] * 4  # before the first of four layers


def test_a_policy_is_chosen_by_what_images_need(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    options = BuildOptions(
        max_context=256, layers=(0, 1), bits_per_weight=7.0, calibrate=shown_and_answered(folder / "m.jsonl")
    )
    manifest = build(checkpoint, tmp_path / "e", options)
    assert read(checkpoint, folder / "m.jsonl").to_dict()["sha256"] in json.dumps(manifest.options["weights"])


def test_the_reference_merges_in_every_row(checkpoint: Path, folder: Path) -> None:
    text, reference = (
        read(checkpoint, shown_and_answered(folder / "m.jsonl")),
        StreamedReference(open_checkpoint(checkpoint)),
    )
    ids = np.asarray([text.sequences[0]] * 2)
    rows = reference.tower_rows().of(text.sequences[0], text.images(0))
    assert rows is not None and rows.rows.shape == (4, reference.config.hidden_size)
    merged, plain = reference.embed(ids, rows), reference.embed(ids)
    assert (merged != plain).any(axis=2).tolist() == (ids == PATCH).tolist()
    np.testing.assert_array_equal(merged[1][ids[1] == PATCH], rows.rows)
    assert reference.tower_rows().of(text.sequences[0], None) is None


# What is refused


LONG = [said("user", "w1"), said("assistant", words(140, 1))]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{}"], "line 1: not a JSON list of messages"),
        (["[1]"], "line 1: not a JSON list of messages"),
        ([json.dumps(LONG), "", "nonsense"], "line 3: not a JSON list of messages"),
        ([json.dumps([said("user", "none.png"), LONG[1]])], r"line 1: .*none.png: no such file"),
        (
            [json.dumps([said("user", "../out.png"), LONG[1]])],
            r"line 1: the image '.*out.png' lies outside .*; copy it",
        ),
        ([json.dumps([said("user", "/etc/x.png"), LONG[1]])], r"line 1: the image '/etc/x.png' lies outside"),
        ([json.dumps([said("user", "link.png"), LONG[1]])], r"line 1: the image '.*link.png' lies outside"),
        ([json.dumps([said("user", "c/config.json.png"), LONG[1]])], "line 1: .*config.json.png: is no image"),
        ([json.dumps([said("user", "w1 <|image|>"), LONG[1]])], "line 1: prompt: has 1 placeholders <.image.> for 0"),
        ([json.dumps([said("user", "w1 <|patch|>"), LONG[1]])], "line 1: prompt: spells <.patch.>"),
        (
            [json.dumps([{"role": "user", "content": [{"type": "image"}]}])],
            "line 1: image 1 of the messages: its part has",
        ),
        ([json.dumps([{"role": "user", "content": [{"type": "image", "url": "http://x"}]}])], "URLs are not followed"),
        ([json.dumps(LONG), json.dumps(LONG[:1])], "line 2: no assistant says anything, so there is no text to score"),
        ([json.dumps([said("user", "w1"), said("assistant", "w5")])], "assistants say 2 tokens; give at least 128"),
        (
            [json.dumps([said("user", "w1"), said("assistant", words(400, 1))])],
            "line 1: has 405 tokens, and at most 300",
        ),
        ([""], "assistants say 0 tokens"),
    ],
)
def test_conversations_that_cannot_be_read(checkpoint: Path, folder: Path, lines: list[str], words: str) -> None:
    (folder.parent / "out.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "link.png").unlink(missing_ok=True)
    (folder / "link.png").symlink_to(folder.parent / "out.png")
    (checkpoint / "config.json.png").write_bytes(b"no image")
    (path := folder / "m.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"--text .*m.jsonl: .*{words}") as caught:
        read(checkpoint, path, 300)
    assert "\n" not in str(caught.value)


def test_what_sees_nothing_says_why(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    path = shown_and_answered(folder / "m.jsonl")
    options = BuildOptions(policy=standard_policy("int4", 16), calibrate=path)
    with pytest.raises(
        InputError, match=r"--calibrate .*: line 1: shows images, and --vision none builds no tower; leave"
    ):
        open_inputs(checkpoint, dataclasses.replace(options, vision="none"))
    config: ModelConfig = open_checkpoint(checkpoint).config
    with pytest.raises(InputError, match=r"line 1: shows images, and .*c has no vision tower; leave it out"):
        TextReader(checkpoint, config).for_weights(path)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"--calibrate .*: .*bare has no tokenizer.json to read messages with"):
        TextReader(tmp_path / "bare", config).for_weights(path)
    with pytest.raises(InputError, match=r"--calibrate .*: no such file"):
        TextReader(checkpoint, config).for_weights(tmp_path / "none.jsonl")


def test_scales_are_measured_on_text(checkpoint: Path, folder: Path) -> None:
    path = shown_and_answered(folder / "m.jsonl")
    options = BuildOptions(kv_dtype="int8", kv_calibrate=path)
    with pytest.raises(InputError, match=r"--kv-calibrate .*m.jsonl: scales are measured on text; give text, or token"):
        open_inputs(checkpoint, options)


def test_a_template_that_says_other_things_afterwards_is_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint = talking_checkpoint(tmp_path / "c")
    template = (checkpoint / "chat_template.jinja").read_text()
    (checkpoint / "chat_template.jinja").write_text("{{ 'w%d ' % (messages | length) }}" + template)
    path = write_conversations(folder / "m.jsonl", LONG)
    with pytest.raises(
        InputError, match=r"line 1: chat template: it writes the messages before message 2 in another way"
    ):
        read(checkpoint, path)


def test_the_command_refuses_in_one_line(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = shown_and_answered(folder / "m.jsonl"), tmp_path / "e"
    start = [
        "build",
        str(checkpoint),
        "-o",
        str(out),
        "--quant",
        "int4",
        "--block-size",
        "16",
        "--calibrate",
        str(path),
    ]
    with pytest.raises(SystemExit) as caught:
        main([*start, "--vision", "none"])
    told = capsys.readouterr().err
    assert caught.value.code == 2 and told.count("\n") == 1 and "--vision none" in told and not out.exists()
