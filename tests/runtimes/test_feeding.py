"""What the decoder is called with, where it is not what it seems."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from l4export.runtimes.cache.chunks import Chunks
from l4export.runtimes.cache.kv_cache import Call
from l4export.runtimes.feeding import Feeding, Limits
from l4export.runtimes.images.feature_rows import FeatureInput, FeatureRows
from l4export.runtimes.random_text import random_text
from workshop import Workshop

WIDTH = 2


class Recorder:
    """A cache that keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def run(self, call: Call) -> np.ndarray:
        self.calls.append(dataclasses.replace(call, ids=call.ids.copy()))
        return np.zeros((len(call.ids), 1 if call.last_only else call.ids.shape[1], 8), np.float32)


@pytest.mark.parametrize("token", [0, 5])
def test_places_without_a_token_take_no_feature(token: int) -> None:
    """Neither the tail of a shorter row nor a row that has nothing to say, whichever id stands for images."""
    cache: Any = Recorder()
    starts = np.zeros(3, np.int64)
    none = np.zeros((0, WIDTH), np.float32)
    rows = [np.asarray(ids) for ids in ([1, token, token, 2], [3], [token, 4])]
    features = np.arange(8, dtype=np.float32).reshape(4, WIDTH)
    given = [FeatureRows([features[:1], features[1:2]]), FeatureRows([]), FeatureRows([features[2:]])]
    limits, chunks = Limits(4, 9, 9, 8, True), Chunks(None, starts)
    feeding = Feeding(cache, limits, starts.copy(), chunks, FeatureInput(token, none), given)
    feeding.logits(rows, last_only=True)
    feeding.logits([np.asarray(ids, np.int64) for ids in ([], [7], [token])], last_only=True)
    first, second = cache.calls
    assert first.ids.shape == (3, 4) and np.count_nonzero(first.ids == token) == 3
    np.testing.assert_array_equal(first.features, features[:3])
    assert np.count_nonzero(second.ids == token) == 1
    np.testing.assert_array_equal(second.features, features[3:])


def test_rows_are_handed_out_across_images() -> None:
    images = [np.arange(6.0).reshape(3, WIDTH), np.arange(6.0, 10.0).reshape(2, WIDTH)]
    for cuts in ([5], [1, 1, 1, 1, 1], [2, 2, 1], [0, 4, 1]):
        rows = FeatureRows(images)
        taken = [part for count in cuts for part in rows.take(count)]
        np.testing.assert_array_equal(np.concatenate(taken), np.concatenate(images))


def test_random_text_has_no_image_tokens(workshop: Workshop) -> None:
    """It is what it was, but for these."""
    manifest = workshop.engine("scout", "static").manifest
    plain = random_text(manifest, 2000)
    np.testing.assert_array_equal(plain, np.random.default_rng(0).integers(0, 256, 2000))

    class Tower:
        image_token_id = 255

    seeing = random_text(dataclasses.replace(manifest, vision=Tower()), 2000)  # type: ignore[arg-type]
    assert 255 in plain and 255 not in seeing
    np.testing.assert_array_equal(seeing, np.where(plain == 255, 0, plain))
