"""What comes of a request, while it comes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from l4export.errors import L4Error
from l4export.runtimes.sampling.logprobs import TokenLogprobs
from l4export.runtimes.serving.bell import Bell

__all__ = ["Answer", "Chosen", "View"]

T = TypeVar("T")


@dataclass(frozen=True)
class Chosen:
    """A token of an answer.

    Attributes:
        token: Its id.
        text: What is complete with it: often a word, sometimes nothing; nothing where there is no tokenizer. The last
            token has all that was held back, and nothing of a stop string.
        logprobs: Where they were asked for.
        finish_reason: Why it is the last one, as in `GeneratedRow`; None where others follow.
    """

    token: int
    text: str
    logprobs: TokenLogprobs | None
    finish_reason: str | None


class Answer:
    """The answer to one request, made by `Batcher.submit`.

    It can be read by any number of threads and tasks, each from the beginning: `for` and `async for` give token ids,
    `text_pieces` and `chosen` other views. Reading waits for what has not come. An answer that has failed raises its
    error behind the last token; one that was cancelled ends.

    Attributes:
        prompt_tokens: Of the request.
    """

    def __init__(
        self, prompt_tokens: int, cancel: Callable[[Answer], None], drive: Callable[[], object] | None
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self._cancel = cancel
        self._drive = drive
        self._bell = Bell()
        self._chosen: list[Chosen] = []
        self._end: str | L4Error | None = None
        self._reused = 0

    def __iter__(self) -> View[int]:
        return View(self, lambda chosen: chosen.token)

    def __aiter__(self) -> View[int]:
        return iter(self)

    def text_pieces(self) -> View[str]:
        """The text as it comes, in pieces that are not empty. There is none where the engine has no tokenizer."""
        return View(self, lambda chosen: chosen.text or None)

    def chosen(self) -> View[Chosen]:
        """Tokens with all that is known of each."""
        return View(self, lambda chosen: chosen)

    def wait(self, timeout: float | None = None) -> Answer:
        """Wait until it has ended; the answer itself.

        Raises:
            L4Error: it has failed.
            TimeoutError: it goes on after `timeout` seconds.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while self._drive is not None and not self.has_ended and time.monotonic() < end:
            self._drive()
        if not self._bell.wait(lambda: self.has_ended, None if timeout is None else end - time.monotonic()):
            raise TimeoutError(f"the answer is not there after {timeout} seconds")
        self._raise_error()
        return self

    def __await__(self) -> Generator[Any, None, Answer]:
        return self._wait_async().__await__()

    def cancel(self) -> None:
        """Choose no further token: its row is free after the call that runs. Nothing happens to one that has ended."""
        self._cancel(self)

    @property
    def has_ended(self) -> bool:
        """Whether everything is there that will be."""
        return self._end is not None

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: as in `GeneratedRow`, "cancelled", or "failed"; None while it goes on."""
        return self._end if isinstance(self._end, str | None) else "failed"

    @property
    def error(self) -> L4Error | None:
        """Why it failed."""
        return self._end if isinstance(self._end, L4Error) else None

    @property
    def tokens(self) -> list[int]:
        """The ids so far, a stop token last."""
        return [chosen.token for chosen in self._chosen]

    @property
    def text(self) -> str:
        """The text so far, without special tokens and what a stop string cuts off."""
        return "".join(chosen.text for chosen in self._chosen)

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Of each token so far, where they were asked for."""
        return [chosen.logprobs for chosen in self._chosen if chosen.logprobs is not None]

    @property
    def reused_tokens(self) -> int:
        """How many tokens of the prompt were there already."""
        return self._reused

    def _give(self, chosen: Chosen) -> None:
        """Publish a token; for the batcher."""
        self._chosen.append(chosen)
        self._end = chosen.finish_reason
        self._bell.ring()

    def _finish(self, end: str | L4Error) -> None:
        """Publish that nothing more comes; for the batcher."""
        self._end = end
        self._bell.ring()

    def _raise_error(self) -> None:
        if isinstance(self._end, L4Error):
            raise type(self._end)(str(self._end)) from self._end  # each reader has a traceback of its own

    async def _wait_async(self) -> Answer:
        await self._ready_async(lambda: self.has_ended)
        self._raise_error()
        return self

    def _ready(self, ready: Callable[[], bool]) -> None:
        if self._drive is not None:
            while not ready():
                self._drive()
        self._bell.wait(ready)

    async def _ready_async(self, ready: Callable[[], bool]) -> None:
        if self._drive is not None:
            while not ready():
                await asyncio.to_thread(self._drive)
        await self._bell.wait_async(ready)


class View(Iterator[T], AsyncIterator[T], Generic[T]):
    """Reads an answer once, from the beginning; for one reader. `item` is what it gives of a token, None: nothing."""

    def __init__(self, answer: Answer, item: Callable[[Chosen], T | None]) -> None:
        self._answer = answer
        self._item = item
        self._at = 0

    def __iter__(self) -> View[T]:
        return self

    def __aiter__(self) -> View[T]:
        return self

    def __next__(self) -> T:
        while True:
            self._answer._ready(self._is_there)
            if self._is_over():
                raise StopIteration
            if (item := self._next()) is not None:
                return item

    async def __anext__(self) -> T:
        while True:
            await self._answer._ready_async(self._is_there)
            if self._is_over():
                raise StopAsyncIteration
            if (item := self._next()) is not None:
                return item

    def _is_there(self) -> bool:
        return self._answer.has_ended or len(self._answer._chosen) > self._at

    def _is_over(self) -> bool:
        if len(self._answer._chosen) > self._at:
            return False
        self._answer._raise_error()
        return True

    def _next(self) -> T | None:
        self._at += 1
        return self._item(self._answer._chosen[self._at - 1])
