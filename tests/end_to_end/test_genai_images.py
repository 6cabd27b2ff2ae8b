"""onnxruntime-genai sees images with an engine's own files, and says what our runtime says."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai as og
import pytest
from pictures import picture
from seeing import PATCH, Room, prompt, seen

from l4export import runtimes
from l4export.engine.manifest import verify_files
from l4export.errors import InputError
from l4export.quantization.policy import standard_policy
from l4export.runtimes import genai_inputs
from l4export.runtimes.engine import Engine
from l4export.runtimes.images.processor import ProcessedImages
from workshop import copy_checkpoint, random_ids

COUNT = 24
"""Tokens that are generated; with a prompt of 30 or more two boundaries of chunks are passed."""

ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "scout": ("scout", {}),
    "scout, standard operators, in halves": ("scout", {"target": "onnx", "dtype": "fp16", "vision_dtype": "fp32"}),
    "maverick": ("maverick", {}),
    "maverick, int4, concat": ("maverick", {"policy": standard_policy("int4"), "kv_layout": "concat"}),
}
PROMPTS: dict[str, list[str | np.ndarray]] = {
    "no image": ["Say something."],
    "one image": ["Is this ", picture(30, 40), " a fox?"],
    "several images": [picture(16, 16), "One, ", picture(20, 50), " two, ", picture(9, 9), "three."],
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    room = Room(tmp_path_factory.mktemp("room"))
    room.loaded = cache(lambda path: (og.Model(str(path)), runtimes.load(path, threads=1)))  # type: ignore[attr-defined]
    return room


def opened(room: Room, name: str = "scout") -> tuple[Path, og.Model, Engine]:
    """One of `ENGINES`: its directory, as onnxruntime-genai has it, and as our runtime has it."""
    variant, options = ENGINES[name]
    path = room.engine(variant, **{"max_context": 256, **options})
    return path, *room.loaded(path)  # type: ignore[attr-defined]


def messages(name: str) -> list[dict[str, Any]]:
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in PROMPTS[name]
    ]
    return [{"role": "user", "content": parts}]


def generator_of(model: og.Model, length: int = 256, **options: Any) -> og.Generator:
    """`min_length` keeps a random model from stopping at its end-of-sequence token."""
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=length, min_length=length, **options)
    return og.Generator(model, parameters)


def say(generator: og.Generator) -> list[int]:
    for _ in range(COUNT):
        generator.generate_next_token()
    tokens: list[int] = generator.get_sequence(0).tolist()
    return tokens[-COUNT:]


def ours(engine: Engine, *appended: tuple[Any, ProcessedImages | None]) -> list[int]:
    """Greedy tokens of our runtime after what is appended, with the end-of-sequence tokens forbidden."""
    session, tokens = engine.session(), list[int]()
    for ids, images in appended:
        logits = session.append(ids, images=images)[:, -1]
    for _ in range(COUNT):
        logits[0, list(engine.config.eos_token_ids)] = -np.inf
        tokens.append(int(logits[0].argmax()))
        logits = session.step([tokens[-1]])
    return tokens


@pytest.mark.parametrize("name", ENGINES)
def test_same_greedy_tokens(room: Room, name: str) -> None:
    path, model, engine = opened(room, name)
    for shown in PROMPTS:
        ids, images = engine.prepare(messages(shown))
        generator = generator_of(model)
        generator.set_inputs(genai_inputs(path, messages(shown), text=engine.text))
        assert generator.get_sequence(0).tolist() == ids, shown
        assert say(generator) == ours(engine, (ids, images)), shown


def test_images_are_seen(room: Room) -> None:
    """Another picture of the same size has the same ids, and another answer."""
    path, model, engine = opened(room)
    said = []
    for seed in range(2):
        content = [{"type": "image", "image": np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)}]
        generator = generator_of(model)
        generator.set_inputs(genai_inputs(path, [{"role": "user", "content": content}], text=engine.text))
        said.append(say(generator))
    assert said[0] != said[1]


@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_text_goes_on_behind_images(room: Room, name: str) -> None:
    """After the prompt, in the middle of a chunk; and after going back to where the prompt ended."""
    path, model, engine = opened(room, name)
    ids, images = engine.prepare(messages("one image"))
    more, again = random_ids(9, 200, seed=1), random_ids(13, 200, seed=2)
    generator = generator_of(model)
    generator.set_inputs(genai_inputs(path, messages("one image"), text=engine.text))
    generator.append_tokens(more)
    assert say(generator) == ours(engine, (ids, images), (more, None))
    generator.rewind_to(len(ids))
    generator.append_tokens(again)
    assert say(generator) == ours(engine, (ids, images), (again, None))


def test_several_rows_of_one_length(room: Room) -> None:
    """One has an image of 7 tokens, the other one of 17."""
    path, model, engine = opened(room)
    images = [seen(path, [(9, 9)]), seen(path, [(14, 30)])]
    rows = [(prompt(images[0], [20, 9]), images[0]), (prompt(images[1], [15, 4]), images[1])]
    tensors = og.NamedTensors()
    tensors["input_ids"] = np.asarray([ids for ids, _ in rows], np.int32)
    tensors["pixel_values"] = np.concatenate([made.tiles for made in images])
    tensors["num_image_tokens"] = np.asarray([sum(made.feature_rows) for made in images])
    generator = generator_of(model, batch_size=2)
    generator.set_inputs(tensors)
    say(generator)
    for row, (ids, made) in enumerate(rows):
        assert generator.get_sequence(row).tolist()[len(ids) :] == ours(engine, (ids, made))


# What an engine has for it


def test_graphs_share_the_weights_of_the_decoder(room: Room) -> None:
    path, _, engine = opened(room)
    names = {"embedding.onnx", "genai_decoder.onnx"}
    assert names < {*engine.manifest.files} and verify_files(path) == engine.manifest
    whole, *parts = (_external(path / name) for name in ("decoder.onnx", "embedding.onnx", "genai_decoder.onnx"))
    assert parts[0] and not parts[0] & parts[1] and parts[0] | parts[1] == whole
    data = {name for name in engine.manifest.files if name.endswith(".data")}
    assert data == {"decoder-00001-of-00001.data", "vision-00001-of-00001.data"}


def _external(graph: Path) -> set[tuple[str, ...]]:
    """Names and places of the weights that a graph reads from data files."""
    found = onnx.load(graph, load_external_data=False).graph.initializer
    return {(tensor.name, *(entry.value for entry in tensor.external_data)) for tensor in found if tensor.external_data}


@pytest.mark.parametrize("options", [{"vision": "none"}, {"kv_layout": "chunked"}])
def test_what_sees_nothing_or_is_not_for_it_has_no_such_graphs(room: Room, options: dict[str, str]) -> None:
    path = room.engine("scout", max_context=256, **options)
    assert not list(path.glob("*embedding.onnx")) and not list(path.glob("genai_decoder.onnx"))
    with pytest.raises(InputError, match=r"sees no images|has no genai_config\.json"):
        genai_inputs(path, messages("one image"))


# What it cannot do, and refuses


@pytest.mark.parametrize("what", ["appended", "second turn", "gone back into", "gone back to the start"])
def test_image_tokens_without_features_are_refused(room: Room, what: str) -> None:
    """It has features for the first prompt alone; image tokens would be embedded as words."""
    path, model, engine = opened(room)
    ids, _ = engine.prepare(messages("one image"))
    generator, inputs = generator_of(model), genai_inputs(path, messages("one image"), text=engine.text)
    with pytest.raises(RuntimeError, match="image_tokens_need_features"):
        if what == "appended":
            generator.append_tokens(ids)
        generator.set_inputs(inputs)
        if what == "gone back into":
            generator.rewind_to(place := ids.index(PATCH) + 2)
            generator.append_tokens(ids[place:])
        if what == "gone back to the start":
            generator.rewind_to(0)
        generator.set_inputs(inputs)


def test_a_patch_token_that_was_generated_is_a_word(room: Room) -> None:
    _, model, engine = opened(room)
    ids = random_ids(20, 200)
    generator = generator_of(model)
    generator.append_tokens(ids)
    generator.append_tokens([PATCH])
    session = engine.session()
    session.append(ids)
    generator.generate_next_token()
    logits = session.step([PATCH])[0]
    logits[list(engine.config.eos_token_ids)] = -np.inf
    assert generator.get_sequence(0)[-1] == logits.argmax()


@pytest.mark.parametrize("change", [1, -1])
def test_another_number_of_image_tokens_is_refused(room: Room, change: int) -> None:
    _, model, engine = opened(room)
    ids, images = engine.prepare(messages("one image"))
    assert images is not None
    tensors = og.NamedTensors()
    tensors["input_ids"], tensors["pixel_values"] = np.asarray([ids], np.int32), images.tiles
    tensors["num_image_tokens"] = np.asarray([sum(images.feature_rows) + change])
    with pytest.raises(RuntimeError, match="pre-allocated shapes"):
        generator_of(model).set_inputs(tensors)


def test_its_own_processor_cannot_be_made(room: Room) -> None:
    _, model, _ = opened(room)
    with pytest.raises(RuntimeError):
        model.create_multimodal_processor()


def test_inputs_are_refused_by_name(room: Room, tmp_path: Path) -> None:
    path, _, engine = opened(room)
    for content, problem in (
        ("<|image|>", "1 placeholders <|image|> for 0 images"),
        ("<|patch|>", "spells <|patch|>"),
        ([{"type": "image", "url": "http://a/b.png"}], "URLs are not followed"),
    ):
        with pytest.raises(InputError, match=problem.replace("|", r"\|")):
            genai_inputs(path, [{"role": "user", "content": content}], text=engine.text)
    other = copy_checkpoint(path, tmp_path / "e")
    (other / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        genai_inputs(other, messages("one image"))
    with pytest.raises(InputError, match="no such engine directory"):
        genai_inputs(tmp_path / "none", messages("one image"))
