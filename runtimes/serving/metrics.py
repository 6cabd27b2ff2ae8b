"""What a batcher has done so far, and how long people waited."""

from __future__ import annotations

import bisect
import threading
from dataclasses import dataclass
from typing import Literal

__all__ = ["Counters", "Histogram", "Metrics", "Outcome"]

Outcome = Literal["finished", "cancelled", "failed", "refused"]
"""How a request ended; "refused" for want of room, before it began."""

BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class Histogram:
    """Durations by size.

    Attributes:
        bounds: Upper ends of all classes but the last, in seconds.
        counts: Durations in each class; one more than there are bounds.
        seconds: Sum of all of them.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Metrics:
    """A batcher at one moment; counts are since it was made.

    Attributes:
        rows: Of its session.
        running: Requests that have a row.
        waiting: Requests that have none yet.
        requests: That have ended, by their outcome.
        prompt_tokens: Of the requests that got a row.
        reused_tokens: How many of these were there already.
        new_tokens: That were chosen.
        first_token: From `submit` to the first token of each answer.
    """

    rows: int
    running: int
    waiting: int
    requests: dict[Outcome, int]
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    first_token: Histogram


class Counters:
    """The counts behind `Metrics`, which any thread may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[Outcome, int] = {"finished": 0, "cancelled": 0, "failed": 0, "refused": 0}
        self._tokens = {"prompt": 0, "reused": 0, "new": 0}
        self._counts, self._seconds = [0] * (len(BOUNDS) + 1), 0.0

    def ended(self, outcome: Outcome) -> None:
        """A request has ended."""
        with self._lock:
            self._requests[outcome] += 1

    def tokens(self, kind: Literal["prompt", "reused", "new"], count: int) -> None:
        """Tokens were given, found or chosen."""
        with self._lock:
            self._tokens[kind] += count

    def first_token(self, seconds: float) -> None:
        """An answer has begun, so long after it was asked for."""
        with self._lock:
            self._counts[bisect.bisect_left(BOUNDS, seconds)] += 1
            self._seconds += seconds

    def metrics(self, rows: int, running: int, waiting: int) -> Metrics:
        """Everything as it is now."""
        with self._lock:
            times, tokens = Histogram(BOUNDS, tuple(self._counts), self._seconds), self._tokens
            return Metrics(
                rows, running, waiting, dict(self._requests), tokens["prompt"], tokens["reused"], tokens["new"], times
            )
