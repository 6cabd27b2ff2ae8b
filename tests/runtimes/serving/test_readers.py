"""Tasks and threads that ask and read at once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from batching import PROMPTS, alone, settings

from l4export.runtimes.serving import Answer, Batcher
from workshop import Workshop


@pytest.mark.parametrize("thread", [True, False])
def test_tasks_read_side_by_side(workshop: Workshop, thread: bool) -> None:
    """More of them than asyncio has threads; one is cancelled, one reads what has ended."""
    engine = workshop.engine("scout", "static")
    expected = [alone(engine, prompt, **settings(number)) for number, prompt in enumerate(PROMPTS)]

    async def main() -> list[Any]:
        with Batcher(engine, rows=3, thread=thread) as batcher:
            answers = [batcher.submit(prompt, **settings(number)) for number, prompt in enumerate(PROMPTS)]

            async def read(answer: Answer) -> tuple[list[int], str]:
                return [token async for token in answer], "".join([piece async for piece in answer.text_pieces()])

            lost = asyncio.create_task(read(batcher.submit([1], 200, stop_token_ids=())))
            await asyncio.sleep(0.01)
            lost.cancel()
            gone = batcher.submit([1], 200, stop_token_ids=())
            gone.cancel()
            read_all = await asyncio.gather(*map(read, answers))
            assert (await gone).finish_reason == "cancelled"
            assert [(await answer).text for answer in answers] == [text for _, text in read_all]
            return [tokens for tokens, _ in read_all]

    assert asyncio.run(main()) == [tokens for tokens, *_ in expected]


def test_threads_submit_and_read_at_once(workshop: Workshop) -> None:
    engine, failures = workshop.engine("scout", "static"), []
    expected = {number: alone(engine, [number], max_new_tokens=6)[0] for number in range(8)}
    with Batcher(engine, rows=3) as batcher:

        def client(number: int) -> None:
            for _ in range(5):
                if list(batcher.submit([number], 6)) != expected[number]:
                    failures.append(number)

        threads = [threading.Thread(target=client, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not failures and batcher.metrics().requests["finished"] == 40


@pytest.mark.parametrize("thread", [True, False])
def test_nobody_waits_for_longer_than_asked(workshop: Workshop, thread: bool) -> None:
    with Batcher(workshop.engine("scout", "static"), rows=1, thread=thread) as batcher:
        answer = batcher.submit([1], 200, stop_token_ids=())
        with pytest.raises(TimeoutError, match=r"not there after 0\.01 seconds"):
            answer.wait(0.01)
        assert not answer.has_ended and len(answer.wait(60).tokens) == 200
