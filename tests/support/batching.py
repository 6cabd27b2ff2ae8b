"""Requests for batchers, what the engine says to each alone, and calls that fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from l4export.runtimes.cache.kv_cache import Call
from l4export.runtimes.engine import Engine
from l4export.runtimes.sampling.settings import Sampling
from l4export.runtimes.serving import Batcher
from workshop import random_ids

__all__ = ["COUNTS", "PROMPTS", "Failing", "alone", "settings"]

COUNTS = (1, 7, 40, 90, 16, 17, 33, 3, 64, 5)
PROMPTS = [random_ids(count, seed=count).tolist() for count in COUNTS]


def settings(number: int) -> dict[str, Any]:
    """Others for each request."""
    drawn = Sampling(temperature=0.9, top_p=0.9, seed=number, repetition_penalty=1.2)
    return {
        "max_new_tokens": 4 + 3 * number,
        "sampling": drawn if number % 2 else None,
        "stop_token_ids": () if number % 3 else None,
        "logprobs": number if number < 3 else None,
    }


def alone(engine: Engine, prompt: list[int], **options: Any) -> tuple[list[int], str | None, list[int]]:
    generation = engine.generate(prompt, **options)
    return list(generation), generation.finish_reason, [item.token for item in generation.row.logprobs]


class Failing:
    """Decoder calls of which some fail."""

    def __init__(self, batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = batcher._session._cache
        self.run, self.fails = cache.run, False
        monkeypatch.setattr(cache, "run", self)

    def __call__(self, call: Call) -> np.ndarray:
        if self.fails or 255 in call.ids:
            raise RuntimeError("lost")
        return self.run(call)
