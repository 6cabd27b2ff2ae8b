"""Requests side by side: each is answered as if it were alone, and what cannot be answered is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batching import COUNTS, PROMPTS, alone, settings

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.quantization.policy import standard_policy
from l4export.runtimes.engine import Engine
from l4export.runtimes.serving import Answer, Batcher, Closed, Overloaded
from workshop import LAYOUTS, ROOT, Workshop, random_ids


def as_told(answer: Answer) -> tuple[list[int], str | None, list[int]]:
    return answer.tokens, answer.finish_reason, [item.token for item in answer.logprobs]


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """One that has a tokenizer."""
    path = tmp_path_factory.mktemp("speaking") / "e"
    build(ROOT / "examples/kjv/model", path, BuildOptions(max_context=128))
    return runtimes.load(path, threads=1)


@pytest.mark.parametrize(("layout", "thread"), [*((layout, True) for layout in LAYOUTS), ("chunked", False)])
def test_answers_are_those_of_one_at_a_time(workshop: Workshop, layout: str, thread: bool) -> None:
    engine = workshop.engine("scout", layout)
    expected = [alone(engine, prompt, **settings(number)) for number, prompt in enumerate(PROMPTS)]
    with Batcher(engine, rows=3, piece=20, thread=thread) as batcher:
        answers = [batcher.submit(prompt, **settings(number)) for number, prompt in enumerate(PROMPTS)]
        assert [list(answer) for answer in answers] == [tokens for tokens, *_ in expected]
        assert [as_told(answer) for answer in answers] == expected
        metrics = batcher.metrics()
    assert metrics.requests == {"finished": 10, "cancelled": 0, "failed": 0, "refused": 0}
    assert metrics.prompt_tokens == sum(COUNTS) and metrics.running == metrics.waiting == 0
    assert metrics.new_tokens == sum(len(tokens) for tokens, *_ in expected)
    assert sum(metrics.first_token.counts) == 10 and metrics.first_token.seconds > 0


def test_texts_end_at_stop_strings(speaking: Engine) -> None:
    generation = speaking.generate([0, 50, 60], 30, stop_token_ids=())
    list(generation)
    stop = generation.text[9:12]
    begun = speaking.generate([0, 50, 60], 30, stop_token_ids=(), stop_strings=stop)
    pieces = list(begun.text_pieces())
    with Batcher(speaking, rows=2) as batcher:
        first = batcher.submit([0, 50, 60], 30, stop_token_ids=(), stop_strings=["never", stop])
        second = batcher.submit([0, 50, 60], 30, stop_token_ids=())
        assert list(first.text_pieces()) == pieces and first.text == "".join(pieces) == begun.text
        assert list(second) == generation.row.tokens and second.text == generation.text
        last = list(first.chosen())[-1]
    assert (first.finish_reason, last.finish_reason, second.finish_reason) == ("stop string",) * 2 + ("max_new_tokens",)
    assert "".join(chosen.text for chosen in first.chosen()) == begun.text


def test_a_row_that_is_full_ends_and_is_used_again(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")
    with Batcher(engine, rows=2, capacity=40) as batcher:
        full = [batcher.submit(random_ids(count), 60, stop_token_ids=()) for count in (40, 39, 30)]
        assert [(len(answer.wait().tokens), answer.finish_reason) for answer in full] == [
            (1, "max_context"),
            (2, "max_context"),
            (11, "max_context"),
        ]
        assert (
            batcher.submit([1, 2], 8, stop_token_ids=()).wait().tokens
            == alone(engine, [1, 2], max_new_tokens=8, stop_token_ids=())[0]
        )
        with pytest.raises(InputError, match="41 tokens are more than the session's capacity of 40"):
            batcher.submit(random_ids(41).tolist())


def test_a_long_prompt_keeps_nobody_waiting(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")
    with Batcher(engine, rows=3, piece=8, thread=False) as batcher:
        running = batcher.submit([1, 2, 3], 12, stop_token_ids=())
        batcher.step()
        long = batcher.submit(random_ids(200).tolist(), 2)
        short = batcher.submit([4, 5], 4, stop_token_ids=())
        running.wait()
        assert short.has_ended and not long.tokens
        assert len(long.wait().tokens) <= 2


BAD: list[tuple[dict[str, Any], str]] = [
    ({"token_ids": []}, "no token ids"),
    ({"token_ids": "abc"}, "token ids must be a sequence"),
    ({"token_ids": [1, 256]}, "token id 256 is outside"),
    ({"token_ids": [[1], [2]]}, "2 rows of token ids"),
    ({"token_ids": [1] * 300}, "300 tokens are more"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"sampling": 0.5}, "sampling is 0.5"),
    ({"stop_token_ids": [-1]}, "a token of stop_token_ids is -1"),
    ({"stop_strings": [""]}, "stop_strings"),
    ({"logprobs": -1}, "logprobs is -1"),
    ({"images": "cat.png"}, "images is 'cat.png'"),
]


def test_everything_is_checked_when_it_is_asked(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")
    with Batcher(engine, rows=1, thread=False) as batcher:
        for options, words in BAD:
            with pytest.raises(InputError, match=words):
                batcher.submit(**{"token_ids": [1], **options})
        assert batcher.metrics().waiting == 0
        assert batcher.is_open
    assert not batcher.is_open
    with pytest.raises(Closed, match="the batcher is closed"):
        batcher.submit([1])
    for wrong, words in (({"rows": 0}, "rows is 0"), ({"piece": 0}, "piece is 0"), ({"waiting": 0}, "waiting is 0")):
        with pytest.raises(InputError, match=words):
            Batcher(engine, **wrong)
    with pytest.raises(InputError, match="engine is 'engine'"):
        Batcher("engine")  # type: ignore[arg-type]


def test_more_than_may_wait_are_refused(workshop: Workshop) -> None:
    with Batcher(workshop.engine("scout", "static"), rows=2, waiting=3, thread=False) as batcher:
        answers = [batcher.submit([number], 3) for number in range(5)]
        with pytest.raises(Overloaded, match="5 requests wait already; ask again later"):
            batcher.submit([1])
        assert batcher.metrics().requests["refused"] == 1
        for answer in answers:
            answer.wait()
        batcher.submit([1], 1).wait()


@pytest.mark.slow
def test_int8_activations_let_rows_depart_at_near_ties_only(
    tmp_path: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an engine of `--quant int4`, rows influence each other's rounding. Every departure is looked at."""
    build(ROOT / "examples/kjv/model", tmp_path / "e", BuildOptions(max_context=128, policy=standard_policy("int4")))
    engine = runtimes.load(tmp_path / "e", threads=1)
    assert engine.text is not None
    ids = engine.text.encode((ROOT / "examples/kjv/held_out.txt").read_text(encoding="utf-8")[:40_000])
    prompts, departed = [ids[300 * n : 300 * n + 11 + n] for n in range(12)], 0
    with Batcher(engine, rows=6, piece=16) as batcher:
        answers = [batcher.submit(prompt, 20) for prompt in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):
            expected = list(engine.generate(prompt, 20))
            tokens = answer.wait().tokens
            at = next((n for n, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]), None)
            if at is not None:
                departed += 1
                logits = engine.session().append([*prompt, *expected[:at]], last_only=True)[0, 0]
                assert logits[expected[at]] - logits[tokens[at]] < 5e-2 * np.abs(logits).max(), "no near tie"
    record_property("departed", departed)
    with capsys.disabled():
        print(f"\n{departed} of {len(prompts)} answers of 20 tokens depart at a near tie (int4, 6 rows)")
