"""CUDA graphs of one inference session: each records the kernels of a step, which are then launched as one.

What ONNX Runtime wants (its notes on `enable_cuda_graph` and `gpu_graph_id`): nothing is copied between host and device
within the run, no control flow, and the addresses and shapes of the recording in every repetition. The first run under
an id computes the step two or three times, to warm up, to record, and to launch the recording; a step may be computed
again, because it writes the same values to the same slots.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from l4export.errors import one_line

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["Recordings", "out_of_memory"]

_ID, _UNRECORDED = "gpu_graph_id", -1


class Recordings:
    """The recordings of a session that was opened with `enable_cuda_graph`, one an id.

    Attributes:
        problem: Why nothing is recorded, in a few words; None while recording works.
        made: How many recordings there have been.
    """

    def __init__(self, problem: str | None = None) -> None:
        self.problem = problem
        self.made = 0
        self._ids = itertools.count(1)  # ONNX Runtime keeps 0 for itself
        self._given_up: deque[int] = deque()

    def new_id(self, owner: object) -> int:
        """An id that no other recording has; its recording goes, by the next run, when `owner` has gone."""
        number = next(self._ids)
        weakref.finalize(owner, self._given_up.append, number)
        return number

    def run(self, inference: onnxruntime.InferenceSession, binding: Any, number: int | None) -> None:
        """Run a binding: record it under the id, or repeat what is recorded there; without an id just run it.

        Where recording fails, the step is run without, and so are all that follow; `problem` says why.

        Raises:
            MemoryError: the GPU has none left.
        """
        while self._given_up:
            inference.release_captured_graph(self._given_up.popleft())
        if number is not None and self.problem is None:
            try:
                inference.run_with_iobinding(binding, _options(number))
            except Exception as error:
                if out_of_memory(error):
                    raise
                self.problem = one_line(error)[:200]
            else:
                self.made = max(self.made, number)
                return
        inference.run_with_iobinding(binding, _options(_UNRECORDED))


def out_of_memory(error: Exception) -> bool:
    """Whether ONNX Runtime, which has no type for it, failed for want of memory."""
    text = str(error).lower()
    return "failed to allocate memory" in text or "out of memory" in text or "available memory" in text


def _options(number: int) -> Any:
    import onnxruntime as ort

    options: Any = ort.RunOptions()
    options.add_run_config_entry(_ID, str(number))
    return options
