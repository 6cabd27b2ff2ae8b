"""The trained example that sees: what engines built from it answer is right, and is what PyTorch answers."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scenes import HELD_OUT, SURE, draw, make_scene, write_pictures

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.parity.whole_model import check_parity
from l4export.quantization.policy import standard_policy
from l4export.runtimes.engine import Engine
from workshop import ROOT

EXAMPLE = ROOT / "examples/shapes"
PICTURES = EXAMPLE / "pictures"
LINES = [json.loads(line) for line in (PICTURES / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
PATCH = 11
"""The id of `<|patch|>`."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    for quant in ("none", "int4"):
        options = BuildOptions(max_context=256, policy=standard_policy(quant))
        build(EXAMPLE / "model", root / quant, options)
    return {path.name: path for path in root.iterdir()}


def messages(line: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a line, with the picture as bytes."""
    picture, question = line["messages"][0]["content"]
    shown = {"type": "image", "bytes": (PICTURES / picture["path"]).read_bytes()}
    return [{"role": "user", "content": [shown, question]}]


def asked(picture: Any, question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]


def answer(engine: Engine, conversation: list[dict[str, Any]], **options: Any) -> str:
    ids, images = engine.prepare(conversation, **options)
    assert engine.text is not None
    return engine.text.decode(engine.generate(ids, max_new_tokens=4, images=images))


def test_pictures_and_questions_are_those_that_the_script_makes(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in PICTURES.iterdir()}
    for path in PICTURES.glob("*.png"):
        with Image.open(path) as kept, Image.open(tmp_path / path.name) as made:
            np.testing.assert_array_equal(np.asarray(kept), np.asarray(made))
    assert (tmp_path / "questions.jsonl").read_bytes() == (PICTURES / "questions.jsonl").read_bytes()
    assert {line["kind"] for line in LINES} == set(SURE)


def test_answers_are_right_and_those_of_pytorch(engines: dict[str, Path]) -> None:
    from transformers import Llama4ForConditionalGeneration

    engine = runtimes.load(engines["none"], threads=1)
    model = Llama4ForConditionalGeneration.from_pretrained(EXAMPLE / "model", dtype=torch.float32).eval()
    assert len(LINES) > 15
    for line in LINES:
        ids, images = engine.prepare(messages(line))
        assert images is not None and ids.count(PATCH) == 16
        tokens = list(engine.generate(ids, max_new_tokens=4, images=images))
        assert engine.text is not None and engine.text.decode(tokens) == line["answer"], line
        theirs = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            pixel_values=torch.from_numpy(images.tiles),
            max_new_tokens=4,
            do_sample=False,
        )
        assert theirs[0, len(ids) :].tolist() == tokens


def test_parity_with_several_tiles(engines: dict[str, Path]) -> None:
    """A picture of one tile, and one of four and a global one, at random places of a text of random tokens."""
    large = draw(make_scene(HELD_OUT), 200)
    report = check_parity(engines["none"], EXAMPLE / "model", 40, 16, images=[PICTURES / "15.png", large])
    assert report.passed and report.images is not None, report.failures
    assert report.images.grids == ((1, 1), (2, 2)) and report.images.tiles == 6
    assert report.images.feature_difference < 1e-5 < report.images.largest_feature
    assert report.chunk_boundaries == 1


def test_large_pictures_conversations_and_what_others_draw(engines: dict[str, Path]) -> None:
    engine = runtimes.load(engines["none"], threads=1)
    large = draw(make_scene(HELD_OUT + 15), 224)
    talk = asked(large, "How many circles are there?")
    assert [len(images) for _, images in [engine.prepare(talk)] if images] == [1]
    assert answer(engine, talk) == answer(engine, talk, max_tiles=1) == "2"
    talk += [{"role": "assistant", "content": "2"}, {"role": "user", "content": "What colour is the triangle?"}]
    assert answer(engine, talk) == "red"
    drawn = Image.new("RGB", (112, 112), "white")
    ImageDraw.Draw(drawn).ellipse((30, 40, 80, 90), fill="red")
    drawn.save(upload := io.BytesIO(), "JPEG")
    part = {"type": "image", "bytes": upload.getvalue()}
    for question, right in (("What shape is this?", "circle"), ("What color is the circle?", "red")):
        assert answer(engine, [{"role": "user", "content": [part, {"type": "text", "text": question}]}]) == right


def test_a_decoder_of_four_bits_answers_the_same(engines: dict[str, Path]) -> None:
    """The policy leaves the tower alone."""
    towers = [(engines[name] / "vision-00001-of-00001.data").read_bytes() for name in ("none", "int4")]
    assert towers[0] == towers[1]
    engine = runtimes.load(engines["int4"], threads=1)
    assert [answer(engine, messages(line)) for line in LINES] == [line["answer"] for line in LINES]


def test_the_question_of_the_quickstart_is_answered_as_the_readme_says(engines: dict[str, Path]) -> None:
    (command,) = re.findall(r"^\t\$\(BIN\)/l4export (run engines/shapes .*)$", (ROOT / "Makefile").read_text(), re.M)
    told = (ROOT / "README.md").read_text(encoding="utf-8")
    (said,) = re.findall(rf"^    \$ l4export {re.escape(command)}\n    (.*)$", told, re.MULTILINE)
    words = shlex.split(command)
    picture, question = (words[words.index(option) + 1] for option in ("--image", "--prompt"))
    assert f"({picture})" in told, "it shows the picture"
    engine = runtimes.load(engines["none"], threads=1)
    assert answer(engine, asked(ROOT / picture, question)) == said
