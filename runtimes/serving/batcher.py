"""Continuous batching: requests join and leave the rows of one session between decoder calls."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

from l4export.errors import InputError, L4Error, one_line
from l4export.runtimes.arguments import a_flag, a_whole_number, shown
from l4export.runtimes.closing import Closing
from l4export.runtimes.engine import Engine
from l4export.runtimes.generated_row import GeneratedRow
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.limits import checked_limits, checked_logprobs
from l4export.runtimes.new_tokens import NewTokens, checked_images, checked_tokens
from l4export.runtimes.sampling.sampler import Sampler
from l4export.runtimes.sampling.settings import Sampling
from l4export.runtimes.serving.answer import Answer
from l4export.runtimes.serving.metrics import Counters, Metrics
from l4export.runtimes.serving.request import Request
from l4export.runtimes.serving.rows import Rows
from l4export.runtimes.session_state import SessionState
from l4export.runtimes.text.stop_strings import checked_stop_strings
from l4export.runtimes.token_history import TokenHistory

__all__ = ["Batcher", "Closed", "Overloaded"]


class Overloaded(InputError):
    """More requests wait than may; ask again later."""


class Closed(InputError):
    """The batcher takes no requests any more: it is closed, or the engine has broken it."""


class Batcher(Closing):
    """Answers requests from any number of threads and tasks, as many at a time as there are rows.

    A request waits for a free row and keeps it until its answer ends. Between two steps, in which every row that
    answers gets a token, about `piece` tokens of prompts are fed, a piece of each in turn, so that a long prompt keeps
    nobody waiting for long. A prompt that begins like what a row holds, or held when its request ended, begins with
    that row's keys and values.

    Answers are those of `Engine.generate` up to the engine's rounding, as `Engine.generate_batch` says it: the same
    tokens for the same settings and seed, unless two of them are nearly equally likely.

    Args:
        engine: A loaded engine. The batcher has a session of its own; the engine can be used as before.
        rows: Requests that are answered at the same time.
        capacity: Tokens of prompt and answer for which a row has room; None: the engine's `max_context`.
        waiting: Requests that may wait for a row; more are refused.
        piece: Prompt tokens between two steps. Smaller ones keep answers flowing, larger ones are fed faster.
        reuse: Whether prompts begin with what rows hold.
        thread: Whether a thread of the batcher's own does the work. Otherwise whoever reads an answer does, or calls
            `step`.

    Raises:
        InputError: an argument out of range, a closed engine, or no memory for the rows.
    """

    def __init__(
        self,
        engine: Engine,
        rows: int = 8,
        capacity: int | None = None,
        waiting: int = 64,
        piece: int = 128,
        reuse: bool = True,
        thread: bool = True,
    ) -> None:
        if not isinstance(engine, Engine):
            raise InputError(f"engine is {shown(engine)}: give what l4export.load returns")
        self._most_waiting = a_whole_number(waiting, "waiting", 1)
        piece, reuse = a_whole_number(piece, "piece", 1), a_flag(reuse, "reuse")
        self._session = engine.session(a_whole_number(rows, "rows", 1), capacity)
        self._empty = SessionState.empty(self._session.capacity, self._session.starts[:1], engine.manifest.prefill_cut)
        self._engine, self._codec = engine, engine.text
        self._vision = engine.manifest.vision if engine.features else None
        self._rows = Rows(self._session, piece, reuse)
        self._counters = Counters()
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()  # of the queue and of what follows
        self._is_closing, self._broken = False, ""
        self._stepping = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="l4export batcher", daemon=True)
        self._has_thread = a_flag(thread, "thread")
        if self._has_thread:
            self._thread.start()

    @property
    def rows(self) -> int:
        """Requests that are answered at the same time."""
        return self._session.batch

    @property
    def capacity(self) -> int:
        """Tokens of prompt and answer for which a row has room."""
        return self._session.capacity

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return not (self._is_closing or self._broken)

    def submit(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        stop_token_ids: Iterable[int] | None = None,
        stop_strings: str | Sequence[str] = (),
        logprobs: int | None = None,
        images: ProcessedImages | None = None,
    ) -> Answer:
        """Ask for the continuation of a prompt; arguments are those of `Engine.generate`.

        Everything is checked here, and this does not wait: the answer comes when there is a row.

        Raises:
            Overloaded: too many requests wait.
            Closed: it is closed, or was broken by the engine.
            InputError: bad arguments, a prompt that a row has no room for, or stop strings without a tokenizer.
        """
        limits = checked_limits(self._engine.config, max_new_tokens, stop_token_ids)
        strings, logprobs = checked_stop_strings(stop_strings), checked_logprobs(self._engine.config, logprobs)
        if strings and self._codec is None:
            raise InputError(f"{self._engine.directory}: has no tokenizer.json, which stop strings need")
        prompt = self._checked(token_ids, images)
        row = GeneratedRow(TokenHistory(), prompt.rows[0], Sampler(sampling), limits, logprobs)
        if self._codec is not None:
            row.speak(self._codec, strings)
        answer = Answer(len(prompt.rows[0]), self._cancel, None if self._has_thread else self.step)
        request = Request(prompt, row, answer, self._counters)
        with self._changed:
            self._check_open()
            if len(self._waiting) >= self._most_waiting + self._rows.free:
                self._counters.ended("refused")
                raise Overloaded(f"{len(self._waiting)} requests wait already; ask again later")
            self._waiting.append(request)
            self._changed.notify_all()
        return answer

    def step(self) -> bool:
        """Bring all requests a step further; False when there is none. Not needed where the batcher has a thread.

        Any thread may call this, and waits while another one does.
        """
        with self._stepping:
            try:
                with self._changed:
                    self._seat()
                    if not self._rows.requests:
                        return False
                self._rows.advance()
            except Exception as error:
                self._break(error)
            return True

    def metrics(self) -> Metrics:
        """Counts, waiting times, and what goes on now."""
        with self._changed:
            return self._counters.metrics(self.rows, self.rows - self._rows.free, len(self._waiting))

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, finish those that are there, and free the session.

        Args:
            timeout: Seconds after which the answers that go on are cancelled; None: never.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._has_thread:
            self._thread.join(timeout)
        else:
            while (deadline is None or time.monotonic() < deadline) and self.step():
                pass
        with self._changed:
            for request in [*self._waiting, *self._rows.requests]:
                request.is_cancelled = True
        if self._has_thread:
            self._thread.join()
        else:
            self.step()
        with self._stepping:  # two threads may close it at once
            self._session.close()

    def _run(self) -> None:
        """The batcher's thread: until it is closed and everything is answered."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._rows.requests or self._is_closing)
                if not (self._waiting or self._rows.requests):
                    return
            self.step()

    def _seat(self) -> None:
        """Let those who wait take the free rows, in their order."""
        self._rows.leave_cancelled()
        while self._waiting and (self._rows.free or self._waiting[0].is_cancelled):
            request = self._waiting.popleft()
            if request.is_cancelled:
                request.cancel()
            else:
                self._counters.tokens("prompt", len(request.ids))
                self._rows.admit(request)

    def _cancel(self, answer: Answer) -> None:
        with self._changed:
            for request in [*self._waiting, *self._rows.requests]:
                if request.answer is answer:
                    request.is_cancelled = True
                    if request in self._waiting:
                        self._waiting.remove(request)
                        request.cancel()

    def _break(self, error: Exception) -> None:
        """A step has failed as none should: fail what is there, and go on if the session does."""
        try:
            self._rows.fail_all(error)
        except Exception as second:
            with self._changed:
                self._broken = one_line(second, L4Error)
                for request in self._waiting:
                    request.fail(error)
                self._waiting.clear()

    def _check_open(self) -> None:
        if self._broken:
            raise Closed(f"the batcher cannot go on ({self._broken}); start a new one")
        if self._is_closing:
            raise Closed("the batcher is closed; start a new one")

    def _checked(self, token_ids: Sequence[int], images: ProcessedImages | None) -> NewTokens:
        """The prompt as an empty row would take it."""
        if images is not None and not isinstance(images, ProcessedImages):
            raise InputError(f"images is {shown(images)}: give what an ImageProcessor makes")
        rows = checked_tokens(token_ids, self._empty, self._engine.manifest)
        return checked_images(rows, images, self._empty, self._vision)
