"""Prompts that begin like what rows hold."""

from __future__ import annotations

from typing import Any

import pytest
from batching import alone

from l4export.runtimes.sampling.settings import Sampling
from l4export.runtimes.serving import Batcher
from workshop import LAYOUTS, Workshop, random_ids


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_begin_with_what_rows_hold(workshop: Workshop, layout: str) -> None:
    """A conversation goes on in its row; a prompt that begins like another copies that one's row."""
    engine = workshop.engine("scout", layout)
    system = random_ids(50, seed=1).tolist()
    first, second = [*system, 1, 2, 3], [*system, 4, 5]
    options: dict[str, Any] = {"max_new_tokens": 20, "stop_token_ids": ()}
    with Batcher(engine, rows=3) as batcher:
        begun = batcher.submit(first, **options).wait()
        other = batcher.submit(second, **options).wait()
        longer = [*first, *begun.tokens, 9, 9]
        on = batcher.submit(longer, **options).wait()
        again = batcher.submit(first, **options).wait()
    # 72 tokens are held of the first, and in layout chunked the keys of its last chunk, from 64 on
    assert other.reused_tokens == (48 if layout == "chunked" else 50)
    assert on.reused_tokens == 53 + 19, "all but the last token that was chosen"
    assert again.reused_tokens == (48 if layout == "chunked" else 52)
    for answer, prompt in ((begun, first), (other, second), (on, longer), (again, first)):
        assert answer.tokens == alone(engine, prompt, **options)[0]
    with Batcher(engine, rows=3, reuse=False) as batcher:
        assert [batcher.submit(first, **options).wait().reused_tokens for _ in range(2)] == [0, 0]


def test_prompts_that_come_together_are_computed_once(workshop: Workshop) -> None:
    engine, prompt = workshop.engine("scout", "static"), random_ids(120).tolist()
    with Batcher(engine, rows=4, piece=32, thread=False) as batcher:
        answers = [batcher.submit(prompt, 5, Sampling(temperature=1, seed=seed)) for seed in range(4)]
        for seed, answer in enumerate(answers):
            assert (
                answer.wait().tokens
                == alone(engine, prompt, max_new_tokens=5, sampling=Sampling(temperature=1, seed=seed))[0]
            )
        metrics = batcher.metrics()
    assert metrics.prompt_tokens - metrics.reused_tokens < 2 * len(prompt)
