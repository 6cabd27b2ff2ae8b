"""A request on its way through a row."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError, L4Error, one_line
from l4export.runtimes.generated_row import GeneratedRow
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.new_tokens import NewTokens
from l4export.runtimes.serving.answer import Answer, Chosen
from l4export.runtimes.serving.metrics import Counters

__all__ = ["Request"]


class Request:
    """A prompt that was checked, what is generated for it, and the answer in which it is told.

    Attributes:
        ids: int64 [n], the prompt.
        placed: Where its images stand in it.
        is_cancelled: Whether nobody wants more of it.
    """

    def __init__(self, prompt: NewTokens, row: GeneratedRow, answer: Answer, counters: Counters) -> None:
        (self.ids,), (self._images,), (self.placed,) = prompt.rows, prompt.images, prompt.placed
        self.answer = answer
        self.is_cancelled = False
        self._row = row
        self._counters = counters
        self._began = time.monotonic()

    @property
    def tokens(self) -> list[int]:
        """Chosen so far."""
        return self._row.tokens

    def piece(self, at: int, most: int) -> tuple[NDArray[np.int64], ProcessedImages | None]:
        """The next tokens behind the first `at`, `most` or up to the end of an image, and the images among them."""
        end = min(at + most, len(self.ids))
        end = next((image.stop for image in self.placed if image.start < end < image.stop), end)
        numbers = [number for number, image in enumerate(self.placed) if at <= image.start < end]
        images = self._images.part(numbers[0], numbers[-1] + 1) if self._images is not None and numbers else None
        return self.ids[at:end], images

    def reuse(self, count: int) -> None:
        """Note that so many tokens of the prompt need not be computed."""
        self.answer._reused += count
        self._counters.tokens("reused", count)

    def choose(self, logits: NDArray[np.float32], is_full: bool) -> None:
        """Choose a token for logits [vocab] and tell it; `is_full` says that there is no room for another one."""
        try:
            said = 0 if self._row.spoken is None else len(self._row.spoken.pieces)
            picked, logprobs = self._row.pick(logits)
            self._row.take(picked, logprobs, is_full)
        except Exception as error:  # of a logits processor, which is the caller's own code, too
            self.fail(error)
            return
        if len(self.tokens) == 1:
            self._counters.first_token(time.monotonic() - self._began)
        self._counters.tokens("new", 1)
        text = "" if self._row.spoken is None else "".join(self._row.spoken.pieces[said:])
        if self._row.finish_reason is not None:
            self._counters.ended("finished")
        self.answer._give(Chosen(picked, text, logprobs, self._row.finish_reason))

    def cancel(self) -> None:
        """End the answer as it is."""
        self._counters.ended("cancelled")
        self.answer._finish("cancelled")

    def fail(self, error: Exception) -> None:
        """End the answer with an error."""
        self._counters.ended("failed")
        self.answer._finish(
            error if isinstance(error, L4Error) else InputError(f"the request failed: {one_line(error)}")
        )
