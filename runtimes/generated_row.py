"""What has been generated of one row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from l4export.runtimes.limits import Limits
from l4export.runtimes.sampling.logprobs import TokenLogprobs, token_logprobs
from l4export.runtimes.sampling.sampler import Sampler
from l4export.runtimes.text.codec import TextCodec
from l4export.runtimes.text.stop_strings import SpokenText
from l4export.runtimes.token_history import TokenHistory

__all__ = ["GeneratedRow"]


class GeneratedRow:
    """The answer of one row, which grows while it is generated.

    Attributes:
        tokens: Chosen so far, a stop token last.
        logprobs: Of each of them, where they were asked for.
        spoken: Their text, where there are stop strings or the text was asked for.
        finish_reason: Why the row has ended: "stop token", "stop string", "max_new_tokens", or "max_context" when
            session or engine are full. None while it goes on, and for a row that was given no prompt.
    """

    def __init__(
        self,
        history: TokenHistory,
        prompt: NDArray[np.int64],
        sampler: Sampler,
        limits: Limits,
        logprobs: int | None = None,
    ) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.spoken: SpokenText | None = None
        self.finish_reason: str | None = None
        self._ids = history.copy().extended(prompt)
        self._runs = len(prompt) > 0
        self._sampler = sampler
        self._limits = limits
        self._logprobs = logprobs

    @property
    def runs(self) -> bool:
        """Whether another token of it will be chosen."""
        return self._runs and self.finish_reason is None

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return None if self.spoken is None else self.spoken.found

    def pick(self, logits: NDArray[np.float32]) -> tuple[int, TokenLogprobs | None]:
        """Choose a token for logits [vocab], with its log probability if that is asked for; nothing changes yet."""
        token = self._sampler(logits, len(self.tokens), self._ids.ids)
        return token, None if self._logprobs is None else token_logprobs(logits, token, self._logprobs)

    def take(self, token: int, logprobs: TokenLogprobs | None, is_full: bool) -> None:
        """Add a chosen token; `is_full` says that it is the last one for which there is room."""
        self.tokens.append(token)
        self._ids = self._ids.extended([token])
        if logprobs is not None:
            self.logprobs.append(logprobs)
        ends = self._end(token, is_full)
        if self.spoken is not None:
            self.spoken.push(token)
            if ends is not None:
                self.spoken.flush()
        self.finish_reason = ends if self.stop_string is None else "stop string"

    def _end(self, token: int, is_full: bool) -> str | None:
        """Why the answer ends with this token, but for a stop string."""
        if token in self._limits.stops:
            return "stop token"
        if len(self.tokens) >= self._limits.max_new_tokens:
            return "max_new_tokens"
        return "max_context" if is_full else None

    def speak(self, codec: TextCodec, stop_strings: tuple[str, ...] = ()) -> SpokenText:
        """The row's text from now on, with what has been said before."""
        if self.spoken is None:
            spoken = SpokenText(codec.stream(), stop_strings)
            for token in self.tokens:
                spoken.push(token)
            if self.finish_reason is not None:
                spoken.flush()
            self.spoken = spoken
        return self.spoken
