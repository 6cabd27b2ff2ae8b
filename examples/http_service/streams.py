"""Answers as server-sent events, while they are chosen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from l4export.errors import L4Error
from l4export.runtimes.serving import Answer, Chosen
from told import REASONS, Teller, error_object, usage


class EventStream(StreamingResponse):
    """The chunks of all answers as they come. Answers that nobody reads any more are cancelled.

    Args:
        teller: Makes the objects.
        answers: Those to each prompt, one behind the other.
        prompts: How many prompts there are.
        tells_usage: Whether the stream ends with the numbers of tokens.
    """

    def __init__(self, teller: Teller, answers: Sequence[Answer], prompts: int, tells_usage: bool) -> None:
        events = _events(teller, answers, prompts, tells_usage)
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or as much as the client stays for."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for answer in self._answers:
                answer.cancel()


async def _events(teller: Teller, answers: Sequence[Answer], prompts: int, tells_usage: bool) -> AsyncIterator[str]:
    more = {"usage": None} if tells_usage else {}
    try:
        async for choice in _merged([_choices(teller, i, a) for i, a in enumerate(answers)]):
            yield _event(teller.chunk([choice], **more))
    except L4Error as error:
        yield _event(error_object(str(error), "server_error"))
        return
    if any(answer.finish_reason == "cancelled" for answer in answers):
        yield _event(error_object("the service is closing", "server_error", code="closing"))
        return
    if tells_usage:
        yield _event(teller.chunk([], usage=usage(answers, prompts)))
    yield "data: [DONE]\n\n"


async def _choices(teller: Teller, index: int, answer: Answer) -> AsyncIterator[dict[str, Any]]:
    """What is told of one answer. Text that may be the call of a tool is held back until that is known."""
    if teller.is_chat:
        yield teller.begin(index)
    held: list[Chosen] = []
    text, given = "", 0
    async for chosen in answer.chosen():
        text += chosen.text
        held.append(chosen)
        is_last = chosen.finish_reason is not None
        calls = teller.calls(text) if is_last and not given else None
        if calls:
            deltas = [{"index": number, **call} for number, call in enumerate(calls)]
            yield {"index": index, "delta": {"tool_calls": deltas}, "logprobs": None, "finish_reason": None}
        elif is_last or given or not teller.holds(text):
            if text[given:] or chosen.logprobs is not None:
                yield teller.piece(index, text[given:], held, given)
            held, given = [], len(text)
        if is_last:
            reason = "tool_calls" if calls else REASONS[str(chosen.finish_reason)]
            yield teller.piece(index, "", reason=reason)


async def _merged(streams: Sequence[AsyncIterator[dict[str, Any]]]) -> AsyncIterator[dict[str, Any]]:
    """Items of several iterators as they come; the error of one ends all."""
    queue: asyncio.Queue[dict[str, Any] | BaseException | None] = asyncio.Queue()

    async def pump(stream: AsyncIterator[dict[str, Any]]) -> None:
        try:
            async for item in stream:
                queue.put_nowait(item)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        going = len(tasks)
        while going:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                going -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
