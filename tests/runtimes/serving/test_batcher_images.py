"""Requests that show images, side by side and with beginnings that were there already."""

from __future__ import annotations

import pytest
from seeing import prompt, seeing_checkpoint, seen

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.runtimes.engine import Engine
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.serving import Batcher


@pytest.fixture(scope="module", params=["static", "chunked"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    root = tmp_path_factory.mktemp(str(request.param))
    options = BuildOptions(kv_layout=request.param, max_context=96)
    build(seeing_checkpoint(root / "checkpoint"), root / "engine", options)
    return runtimes.load(root / "engine", threads=1)


def alone(engine: Engine, ids: list[int], images: ProcessedImages | None) -> list[int]:
    return list(engine.generate(ids, 8, images=images, stop_token_ids=()))


def test_images_are_fed_whole_and_taken_over_whole(engine: Engine) -> None:
    """Pieces end behind an image; of two prompts that show other images at one place, what stands before is alike."""
    images, others = (seen(engine.directory, sizes) for sizes in ([(14, 30), (9, 9)], [(14, 30), (30, 14)]))
    ids, text = prompt(images, [5, 6, 9]).tolist(), [*range(20)]
    changed = [*ids[:-3], 7, 7, 7]
    other = prompt(others, [5, 6, 9]).tolist()
    expected = [alone(engine, ids, images), alone(engine, text, None), alone(engine, other, others)]
    for piece in (1, 4, 100):
        with Batcher(engine, rows=3, piece=piece, thread=False) as batcher:
            given = ((ids, images), (text, None), (other, others))
            answers = [batcher.submit(each, 8, images=seen_, stop_token_ids=()) for each, seen_ in given]
            assert [answer.wait().tokens for answer in answers] == expected
    with Batcher(engine, rows=3, thread=False) as batcher:
        first = batcher.submit(ids, 2, images=images, stop_token_ids=()).wait()
        again = batcher.submit(changed, 8, images=images, stop_token_ids=()).wait()
        third = batcher.submit(other, 8, images=others, stop_token_ids=()).wait()
        assert first.reused_tokens == 0 and again.reused_tokens >= 34, "both images"
        assert again.tokens == alone(engine, changed, images)
        same = next(n for n, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1])
        assert third.reused_tokens <= same and third.tokens == expected[2]


def test_images_that_differ_are_not_taken_for_each_other(engine: Engine) -> None:
    """Their tokens are the same."""
    one, two = (seen(engine.directory, [size]) for size in ((9, 9), (9, 10)))
    ids = prompt(one, [18, 4]).tolist()
    with Batcher(engine, rows=2, thread=False) as batcher:
        for images in (one, two, one):
            answer = batcher.submit(ids, 6, images=images, stop_token_ids=()).wait()
            assert answer.tokens == alone(engine, ids, images)[:6]
        assert answer.reused_tokens >= 16
        with pytest.raises(InputError, match="image tokens"):
            batcher.submit(ids)
