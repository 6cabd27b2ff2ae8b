"""`async for` over generations: the loop goes on, one caller at a time, and a cancelled call loses no token."""

from __future__ import annotations

import asyncio
import threading

import pytest

from l4export.errors import InputError
from l4export.runtimes.generation import Generation
from l4export.runtimes.sampling.settings import Sampling
from l4export.runtimes.steps import Steps
from workshop import Workshop

PROMPT = [1, 2, 3]


class Paused(Steps[int]):
    """Counts to four; each item waits until it is let go, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.count = 0
        self.failures: list[Exception] = []

    def _step(self) -> int:
        self.entered.set()
        assert self.go_on.wait(20)
        if self.failures:
            raise self.failures.pop()
        if self.count == 4:
            raise StopIteration
        self.count += 1
        return self.count


async def until(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.001)


def test_it_gives_what_for_gives(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")

    async def collected(generation: Generation) -> list[int]:
        return [token async for token in generation]

    async def both() -> list[list[int]]:
        seeds = (Sampling(1.0, seed=1), Sampling(1.0, seed=2))
        return await asyncio.gather(*(collected(engine.generate(PROMPT, 8, each, ())) for each in seeds))

    assert asyncio.run(both()) == [list(engine.generate(PROMPT, 8, Sampling(1.0, seed=seed), ())) for seed in (1, 2)]


def test_batches_too(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")

    async def collected() -> list[list[int | None]]:
        return [step async for step in engine.generate_batch([PROMPT, [4]], 4, None, ())]

    assert asyncio.run(collected()) == list(engine.generate_batch([PROMPT, [4]], 4, None, ()))


def test_the_loop_goes_on_meanwhile() -> None:
    steps, beats = Paused(), []

    async def heart() -> None:
        await until(steps.entered)
        for beat in range(5):
            beats.append(beat)
            await asyncio.sleep(0)
        steps.go_on.set()

    async def both() -> int:
        _, first = await asyncio.gather(heart(), anext(steps))
        return first

    assert asyncio.run(both()) == 1 and beats == list(range(5))


def test_a_cancelled_call_loses_no_item() -> None:
    steps = Paused()

    async def cancelled() -> list[int]:
        task = asyncio.create_task(anext(steps))
        await until(steps.entered)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()  # it ends with its thread
        with pytest.raises(InputError, match="the generation is in use"):
            await anext(steps)
        steps.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        return [item async for item in steps]

    assert asyncio.run(cancelled()) == [1, 2, 3, 4]


def test_a_call_that_is_cancelled_twice_loses_none_either() -> None:
    steps = Paused()

    async def cancelled() -> list[int]:
        task = asyncio.create_task(anext(steps))
        await until(steps.entered)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await task
        steps.go_on.set()
        while True:
            try:
                return [await anext(steps), *list(steps)]
            except InputError:  # the thread still has it
                await asyncio.sleep(0.001)

    assert asyncio.run(cancelled()) == [1, 2, 3, 4]


def test_what_a_cancelled_call_has_computed_is_the_next_item_of_a_plain_loop() -> None:
    steps = Paused()

    async def cancelled() -> None:
        task = asyncio.create_task(anext(steps))
        await until(steps.entered)
        task.cancel()
        await asyncio.sleep(0)
        steps.go_on.set()
        await asyncio.wait([task])

    asyncio.run(cancelled())
    assert steps.count == 1 and list(steps) == [1, 2, 3, 4]


def test_a_failure_is_raised_and_can_be_tried_again() -> None:
    steps = Paused()
    steps.go_on.set()
    steps.failures = [InputError("refused")]

    async def tried() -> list[int]:
        with pytest.raises(InputError, match="refused"):
            await anext(steps)
        return [item async for item in steps]

    assert asyncio.run(tried()) == [1, 2, 3, 4]


def test_a_cancelled_call_that_fails_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    steps = Paused()
    steps.failures = [InputError("refused")]

    async def cancelled() -> list[int]:
        task = asyncio.create_task(anext(steps))
        await until(steps.entered)
        task.cancel()
        await asyncio.sleep(0)
        steps.go_on.set()
        await asyncio.wait([task])
        assert task.cancelled()
        return [item async for item in steps]

    assert asyncio.run(cancelled()) == [1, 2, 3, 4] and not recwarn.list
