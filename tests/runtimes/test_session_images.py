"""Sessions that see images: whatever way a prompt goes, the logits are transformers', and bad input is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_client import transformers_logits
from pictures import picture
from saved_files import forged
from seeing import PATCH, prompt, seeing_checkpoint, seen

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.runtimes.cache.kv_cache import Call
from l4export.runtimes.engine import Engine
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.session import Session
from workshop import LAYOUTS, Workshop, assert_close, random_ids

layouts = pytest.mark.parametrize("layout", LAYOUTS)
Engines = dict[str, Engine]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing_checkpoint(tmp_path_factory.mktemp("see") / "c")


@pytest.fixture(scope="module")
def engines(checkpoint: Path) -> Engines:
    made = {}
    for layout in LAYOUTS:
        build(checkpoint, checkpoint.parent / layout, BuildOptions(kv_layout=layout, max_context=96))
        made[layout] = runtimes.load(checkpoint.parent / layout, threads=1)
    return made


@pytest.fixture(scope="module")
def images(engines: Engines) -> ProcessedImages:
    """Of 1 x 2 tiles and a global one, 12 rows; and of one tile, 4 rows."""
    made = seen(engines["static"].directory, [(14, 30), (9, 9)])
    assert made.grids == ((1, 2), (1, 1))
    return made


@pytest.fixture(scope="module")
def ids(images: ProcessedImages) -> np.ndarray:
    """5 of text, 17 of an image across a chunk's end, 6, 7 of an image across another, 9."""
    made = prompt(images, [5, 6, 9])
    assert len(made) == 44
    return made


@pytest.fixture(scope="module")
def expected(checkpoint: Path, ids: np.ndarray, images: ProcessedImages, tmp_path_factory: Any) -> np.ndarray:
    return transformers_logits(checkpoint, ids[None], images.tiles, tmp_path_factory.mktemp("scratch"))[0]


@layouts
def test_a_prompt_is_cut_anywhere(
    engines: Engines, ids: np.ndarray, images: ProcessedImages, expected: np.ndarray, layout: str
) -> None:
    """Calls of 1, 3 and all tokens: most begin or end within an image."""
    for piece in (1, 3, 512):
        session = engines[layout].session()
        session._piece = piece
        assert_close(session.append(ids, images=images)[0], expected)
    (first, second) = session.state.images[0]
    assert (first.start, first.stop, first.digest) == (6, 21, images.digests[0])
    assert (second.start, second.stop, second.digest) == (30, 34, images.digests[1])


@layouts
def test_rows_with_and_without_images(
    engines: Engines, ids: np.ndarray, images: ProcessedImages, expected: np.ndarray, layout: str
) -> None:
    """Each row has its own, whether rows are fed together, one by one, or go on with a token each."""
    engine, text = engines[layout], random_ids(20, 230)
    alone = engine.session().append(text)[0]
    other = seen(engine.directory, [(9, 20)])
    third = prompt(other, [2, 3], seed=5)
    of_third = engine.session().append(third, images=[other])[0]
    session = engine.session(batch=4)
    logits = session.append([ids[:-1], text, third, []], images=[images, None, other, None])
    for row, due in enumerate((expected[:-1], alone, of_third)):
        assert_close(logits[row, : len(due)], due)
    assert_close(session.step([int(ids[-1]), None, None, 3])[0], expected[-1])
    session.copy_row(3, session, 1)
    session.copy_row(1, session, 0)
    assert session.state.images[1] == session.state.images[0] and not session.state.images[3]
    assert_close(session.step([None, 7, None, None])[1], engine.session().append([*ids, 7], images=images)[0, -1])
    both = engine.session(batch=2).append([third, ids], images=[other, images])
    assert_close(both[0, : len(third)], of_third)
    assert_close(both[1], expected)


@layouts
def test_back_copied_saved_and_loaded_a_session_says_the_same(
    engines: Engines, ids: np.ndarray, images: ProcessedImages, tmp_path: Path, layout: str
) -> None:
    """Bit for bit what the session says that went straight on, with the same calls."""
    engine = engines[layout]
    first, second = (seen(engine.directory, [size]) for size in ((14, 30), (9, 9)))
    straight = engine.session()
    straight.append(ids[:24], images=first)
    due = [straight.append(ids[24:], images=second), straight.append([7])]
    session = engine.session()
    session.append(ids[:24], images=first)
    before = session.state.images
    session.save(tmp_path / "s")
    engine.forget_images()
    strayed = session.fork()
    strayed.append([1, 2, 3])
    strayed.rewind(3)
    loaded = engine.load_session(tmp_path / "s")
    for other in (session, session.fork(), session.fork([0]), strayed, loaded):
        assert other.state.images == before
        np.testing.assert_array_equal(other.append(ids[24:], images=second), due[0])
        np.testing.assert_array_equal(other.append([7]), due[1])
        assert [image.digest for image in other.state.images[0]] == list(images.digests)


@layouts
def test_a_row_goes_back_to_before_an_image_or_behind_it(
    engines: Engines, ids: np.ndarray, images: ProcessedImages, expected: np.ndarray, layout: str
) -> None:
    session = engines[layout].session()
    session.append(ids, images=images)
    for length in (31, 33):
        with pytest.raises(
            InputError, match=f"row 0: cannot go back to {length} tokens, .* go back to 30 or 34 tokens"
        ):
            session.rewind(len(ids) - length)
    session.rewind(len(ids) - 34)
    assert len(session.state.images[0]) == 2
    if layout != "chunked":  # there the keys of 30's chunk are gone
        session.rewind(4)
        assert len(session.state.images[0]) == 1
        other = seen(engines[layout].directory, [(5, 5)])
        session.append(ids[30:34], images=other)
        assert session.state.images[0][1].digest == other.digests[0]
        session.rewind(4)
        logits = session.append(ids[30:], images=seen(engines[layout].directory, [(9, 9)]))
        assert_close(logits[0], expected[30:])
    session.reset()
    assert session.state.images == ((),)


@layouts
def test_an_append_that_fails_leaves_no_image(
    engines: Engines, ids: np.ndarray, images: ProcessedImages, expected: np.ndarray, layout: str, monkeypatch: Any
) -> None:
    session = engines[layout].session()
    session._piece = 8
    run, calls = session._cache.run, 0

    def fails(call: Call) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("device lost")
        return run(call)

    monkeypatch.setattr(session._cache, "run", fails)
    with pytest.raises(InputError, match="device lost"):
        session.append(ids, images=images)
    monkeypatch.undo()
    assert session.state.images == ((),)
    assert_close(session.append(ids, images=images)[0], expected)


def test_an_image_is_computed_once_until_it_is_forgotten(
    engines: Engines, ids: np.ndarray, images: ProcessedImages, monkeypatch: Any
) -> None:
    engine, counts = engines["static"], []
    assert engine.features is not None
    compute = engine.features._compute
    monkeypatch.setattr(engine.features, "_compute", lambda tiles: counts.append(len(tiles)) or compute(tiles))
    engine.forget_images()
    for _ in range(2):
        engine.session(batch=2).append([ids, ids], last_only=True, images=[images, images])
    assert counts == [3, 1]
    engine.forget_images()
    list(engine.generate(ids.tolist(), 2, images=images))
    assert counts == [3, 1] * 2


def test_what_was_asked_for_the_longest_time_ago_is_forgotten(images: ProcessedImages) -> None:
    asked: list[int] = []

    def tower(tiles: np.ndarray) -> np.ndarray:
        asked.append(len(tiles))
        return np.zeros((4 * len(tiles), 8), np.float32)

    first, second = (
        dataclasses.replace(images, tiles=images.tiles_of(at), grids=images.grids[at : at + 1], digests=(str(at),))
        for at in range(2)
    )
    features = ImageFeatures(tower, most_bytes=12 * 8 * 4)
    for each in (second, second, first, first, second, first):
        features.of(each)
    assert asked == [1, 3, 1, 3]
    with pytest.raises(InputError, match="the tower gives 4 rows for 12 tokens"):
        ImageFeatures(lambda tiles: np.zeros((4, 8), np.float32)).of(first)


def test_generation_with_images(
    engines: Engines, checkpoint: Path, ids: np.ndarray, images: ProcessedImages, tmp_path: Path
) -> None:
    """The greedy tokens of transformers; and of rows with and without images side by side, each row's own."""
    due: list[int] = []
    for _ in range(6):
        text = np.asarray([*ids, *due])[None]
        due.append(int(transformers_logits(checkpoint, text, images.tiles, tmp_path)[0, -1].argmax()))
    engine, text = engines["chunked"], random_ids(9, 230).tolist()
    assert list(engine.generate(ids.tolist(), 6, stop_token_ids=(), images=images)) == due
    rows = zip(*engine.generate_batch([ids, text], 6, stop_token_ids=(), images=[images, None]), strict=True)
    assert [list(row) for row in rows] == [due, list(engine.generate(text, 6, stop_token_ids=()))]


def test_an_image_token_that_the_model_chose_is_text(engines: Engines) -> None:
    """As in transformers; but nobody may append it."""
    text, ids = Session(engines["static"].new_cache, engines["static"].manifest, 1), random_ids(9, 230)
    due = text.append([*ids, PATCH])[0, -1]
    session = engines["static"].session()
    session.append(ids)
    assert_close(session.step([PATCH])[0], due)
    for tokens in ([], [1, 2], "1", [1.5], [[1]], [256], [None]):
        with pytest.raises(InputError):
            session.step(tokens)  # type: ignore[arg-type]
    assert session.lengths.tolist() == [10]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda ids, made: (ids, None), r"row 0: has 16 image tokens \(236\) and no images; give both or none"),
        (lambda ids, made: (ids[:6], made), r"row 0: has 0 image tokens .* 2 images of 16 feature rows"),
        (lambda ids, made: (ids[:40][ids[:40] != 228], made), None),
        (lambda ids, made: (ids[:32], made), "row 0: has 14 image tokens"),
        (lambda ids, made: ([*ids, PATCH], made), "row 0: has 17 image tokens"),
        (lambda ids, made: ([*ids, *ids, *ids], made), "capacity of 96"),
        (lambda ids, made: (ids, [made, made]), "images of 2 rows for a session of 1"),
        (lambda ids, made: (ids, []), "images of 0 rows for a session of 1"),
        (lambda ids, made: (ids, "a.png"), "images is 'a.png': give what an ImageProcessor makes"),
        (lambda ids, made: (ids, made.tiles), "images is .*: give what an ImageProcessor makes"),
        (lambda ids, made: (ids, dataclasses.replace(made, rows_of_a_tile=9)), "tiles of 16 pixels and 9 rows"),
        (lambda ids, made: (ids, dataclasses.replace(made, tiles=made.tiles[..., :8, :8])), "tiles of 8 pixels"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_tower_runs(
    engines: Engines, ids: np.ndarray, images: ProcessedImages, change: Callable[..., Any], problem: str | None
) -> None:
    engine = engines["static"]
    engine.forget_images()
    assert engine.features is not None
    session, before = engine.session(), engine.features.seconds
    tokens, given = change(ids, images)
    if problem is None:  # separators are tokens like others
        assert session.append(tokens, images=given).shape[1] == 39
        return
    for call in (session.append, engine.generate):
        with pytest.raises(InputError, match=problem) as caught:
            call(tokens, images=given)  # type: ignore[operator]
        assert len(str(caught.value).splitlines()) == 1
    assert session.lengths.tolist() == [0] and engine.features.seconds == before


def test_an_engine_without_a_tower_sees_nothing(workshop: Workshop, ids: np.ndarray, images: ProcessedImages) -> None:
    engine = workshop.engine("scout", "static")
    with pytest.raises(InputError, match="row 0: has images, and this engine sees none"):
        engine.session().append(ids, images=images)
    assert engine.session().append([PATCH]).shape == (1, 1, 256)
    engine.forget_images()


@pytest.mark.parametrize(
    "saved",
    [
        *([], [[], []], [None], "images", [[[6, 21]]], [[[6, 21, "x"]]], [[[6, 21, 1]]]),
        *([[[start, stop, "0" * 64]]] for start, stop in ((21, 6), (6, 99), (-1, 21), (True, 21), (6, 21.0), (6, 6))),
        [[[6, 21, "0" * 64], [20, 30, "0" * 64]]],
    ],
)
def test_forged_images_of_a_saved_session_are_refused(
    engines: Engines, ids: np.ndarray, images: ProcessedImages, tmp_path: Path, saved: object
) -> None:
    session, path = engines["static"].session(), tmp_path / "s"
    session.append(ids, images=images)
    session.save(path)
    forged(path, lambda state, tensors: state.__setitem__("images", saved))
    with pytest.raises(InputError, match=r"damaged: .*image") as caught:
        engines["static"].load_session(path)
    assert len(str(caught.value).splitlines()) == 1


def test_messages_become_a_prompt(engines: Engines, images: ProcessedImages) -> None:
    engine = engines["static"]
    content = [
        {"type": "text", "text": "One"},
        {"type": "image", "image": picture(14, 30)},
        {"type": "text", "text": " two"},
        {"type": "image", "image": picture(9, 9)},
    ]
    ids, made = engine.prepare([{"role": "user", "content": content}])
    assert made is not None and made.digests == images.digests and made.token_counts == (17, 7)
    # begin of text, heads of two turns ("user", "assistant") with two marks and two line ends each, end of turn
    around = 1 + (2 + 4 + 2) + 1 + (2 + 9 + 2)
    assert len(ids) == around + len("One two") + 17 + 7
    assert list(engine.generate(ids, 3, images=made))
    text, nothing = engine.prepare([{"role": "user", "content": "One"}])
    assert len(text) == around + len("One") and nothing is None
    assert engine.prepare([{"role": "user", "content": content}], max_tiles=1)[1].grids == ((1, 1), (1, 1))  # type: ignore[union-attr]
    for text, problem in (("<|image|>", "1 placeholders"), ("<|patch|>", "spells"), ("<|image_start|>", "spells")):
        with pytest.raises(InputError, match=problem):
            engine.prepare([{"role": "user", "content": text}])
    with pytest.raises(InputError, match="URLs are not followed"):
        engine.prepare([{"role": "user", "content": [{"type": "image", "url": "http://a/b.png"}]}])
