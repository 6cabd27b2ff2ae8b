"""`bench --images`: what is shown, what is counted, and whether the tower works when it is timed."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from seeing import Room

from l4export import runtimes
from l4export.benchmark.images import image_prompt, measure_images
from l4export.benchmark.measure import bench
from l4export.cli import main
from l4export.cli.bench import _show
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError

SIZE = 5 * 4 + 4 + 3
"""Tokens of an image of 2 x 2 tiles and its global one, 4 rows each: with its separators, marks and `<|image|>`."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(tmp_path_factory.mktemp("room"))


@pytest.fixture(autouse=True)
def quick_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l4export.benchmark.measure.read_bandwidth", lambda _threads: 12e9)


def test_a_report_with_images(room: Room) -> None:
    report = bench(room.engine("guard"), prefill=30, decode=2, repeats=2, threads=1, images=2)
    images = report.images
    assert images is not None and (images.count, images.tiles, images.prompt_tokens) == (2, 5, 30 + 2 * SIZE)
    assert [of.tiles for of in images.tower] == [1, 5, 17]
    for of in images.tower:
        assert of.seconds > 0 and of.features_per_second == pytest.approx(4 * of.tiles / of.seconds)
    assert min(images.first_token_seconds, images.seen_first_token_seconds, images.text_first_token_seconds) > 0
    assert report.prefill_tokens == 30  # the other figures are those of text
    told = json.loads(report.to_json())["images"]
    assert [of["tiles"] for of in told["tower"]] == [1, 5, 17] and told["count"] == 2
    with redirect_stdout(io.StringIO()) as out:
        _show(report)
    for words in (
        "vision tower, 17 tiles",
        "features/s",
        "first token, 2 images of 5 tiles in 84 tokens",
        "text alone",
    ):
        assert words in out.getvalue()


def test_the_prompt_shows_different_images_before_the_text(room: Room) -> None:
    engine = room.engine("guard")
    ids, images = image_prompt(engine, load_manifest(engine), 3, 10)
    assert len(ids) == 3 * SIZE + 10 and len(set(images.digests)) == 3 and images.grids == ((2, 2),) * 3
    assert np.flatnonzero(ids == 236)[-1] < 3 * SIZE and (ids == 236).sum() == sum(images.feature_rows) == 60


def test_the_tower_works_once_for_new_images_and_not_for_seen_ones(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two runs and a warm-up each: every image of the prompt, and every size by itself."""
    engine = runtimes.load(room.engine("guard"), 1)
    assert engine.features is not None
    compute, calls = engine.features._compute, list[int]()

    def counted(tiles: np.ndarray) -> np.ndarray:
        calls.append(len(tiles))
        return compute(tiles)

    monkeypatch.setattr(engine.features, "_compute", counted)
    ids, images = image_prompt(engine.directory, engine.manifest, 2, 10)
    measure_images(engine, ids, images, 2, lambda _: None)
    assert calls == [1] * 3 + [5] * 3 + [17] * 3 + [5, 5] * 3
    assert not engine.features._kept


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        ({"vision": "none"}, {"images": 1}, r"--images: .* sees no images; build it from a checkpoint with a vision"),
        ({}, {"images": 0}, "--images 0: give at least 1"),
        ({}, {"images": True}, "--images True: give at least 1"),
        ({}, {"images": 4}, r"--images 4: of 27 tokens each, and --prefill 30: .* max_context of 128"),
        ({}, {"images": 10**9}, r"--images 1000000000: of 27 tokens each"),
    ],
)
def test_refusals(
    room: Room, engine: dict[str, str], options: dict[str, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = room.engine("guard", **engine)
    monkeypatch.setattr(runtimes, "load", lambda *_: pytest.fail("refused after minutes"))
    with pytest.raises(InputError, match=words):
        bench(path, prefill=30, decode=2, repeats=1, **options)


def test_the_command(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    def run(engine: Path) -> tuple[int, str, str]:
        options = ("--prefill", "9", "--decode", "2", "--repeats", "1", "--images", "1", "--json")
        with pytest.raises(SystemExit) as caught:
            main(["bench", str(engine), *options])
        return int(caught.value.code or 0), *capsys.readouterr()

    code, out, _ = run(room.engine("guard"))
    assert code == 0 and json.loads(out)["details"]["images"]["prompt_tokens"] == 9 + SIZE
    code, out, err = run(room.engine("guard", vision="none"))
    assert (code, out, err.count("\n")) == (2, "", 1) and "sees no images" in err
