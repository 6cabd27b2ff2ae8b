"""KV caches in the memory of ONNX Runtime's CPU provider, and the decoder calls on them: one class a layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest
from l4export.runtimes.cache.kv_cache import Arrays, Call, KVCache

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["ChunkedCache", "ConcatCache", "HostCache", "StaticCache", "new_host_cache"]


class HostCache(KVCache):
    """A cache in the memory of ONNX Runtime's CPU provider.

    Attributes:
        arrays: Keys and values of every layer, in the order of `spec`.
    """

    def __init__(self, inference: onnxruntime.InferenceSession, manifest: Manifest, batch: int, capacity: int) -> None:
        super().__init__(manifest, batch, capacity)
        self.inference = inference
        self.arrays: list[NDArray[Any]] = []

    @property
    def nbytes(self) -> int:
        """Of the arrays."""
        return sum(array.nbytes for array in self.arrays)

    def tokens(self, row: int, count: int, local_count: int) -> Arrays:
        """Views of the arrays."""
        return [
            array[row, :, : local_count if local else count]
            for array, local in zip(self.arrays, self.spec.local, strict=True)
        ]

    def new_arrays(self, slots: Sequence[int]) -> list[NDArray[Any]]:
        """Zeros, with so many slots in each array."""
        heads, width = self.spec.heads, self.spec.width
        return [np.zeros((self.batch, heads, count, width), dtype=self.spec.dtype) for count in slots]


def new_host_cache(inference: onnxruntime.InferenceSession, manifest: Manifest, batch: int, capacity: int) -> HostCache:
    """An empty cache in the engine's layout; `capacity` in tokens a row."""
    kinds: dict[str, type[HostCache]] = {"concat": ConcatCache, "static": StaticCache, "chunked": ChunkedCache}
    return kinds[manifest.kv_layout](inference, manifest, batch, capacity)


class StaticCache(HostCache):
    """Buffers of `capacity` slots that the decoder updates in place: the same memory is its input and its output.

    Slots after a row's length hold leftovers. Nobody reads them, and the next tokens overwrite them, so undoing a call
    needs nothing here.
    """

    def __init__(self, inference: onnxruntime.InferenceSession, manifest: Manifest, batch: int, capacity: int) -> None:
        super().__init__(inference, manifest, batch, capacity)
        self.arrays = self.new_arrays(self.slots(manifest))
        self._bindings: dict[int | None, _Binding] = {}

    def slots(self, manifest: Manifest) -> list[int]:
        """Slots of each buffer."""
        return [self.capacity] * len(self.spec.names)

    def run(self, call: Call) -> NDArray[np.float32]:
        """Bound by address, so no key, value or logit is copied; the arrays outlive the call."""
        binding = self._binding(call.row)
        binding.feed(call.inputs())
        rows, tokens = call.ids.shape
        logits = np.empty((rows, 1 if call.last_only else tokens, self.vocab), dtype=np.float32)
        binding.io.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self.inference.run_with_iobinding(binding.io)
        return logits

    def put(self, row: int, tokens: Arrays) -> None:
        """Copies the slots that are used."""
        for array, part in zip(self.arrays, tokens, strict=True):
            array[row, :, : part.shape[1]] = part

    def mark(self, losing: Iterable[tuple[int, int]]) -> Any:
        """Nothing to remember."""

    def restore(self, mark: Any) -> None:
        """Nothing to undo."""

    def reset(self) -> None:
        """Nothing to clear: no slot is read before it is written."""

    def _binding(self, row: int | None) -> _Binding:
        """A binding with the caches bound. It is made once for each row and once for all of them."""
        if row not in self._bindings:
            io = self.inference.io_binding()
            for past, present, buffer in zip(self.spec.past, self.spec.present, self.arrays, strict=True):
                part = buffer if row is None else buffer[row : row + 1]
                io.bind_input(past, "cpu", 0, self.spec.dtype, part.shape, part.ctypes.data)
                io.bind_output(present, "cpu", 0, self.spec.dtype, part.shape, part.ctypes.data)
            self._bindings[row] = _Binding(io, {})
        return self._bindings[row]


@dataclass(frozen=True)
class _Binding:
    """What is bound to the decoder's names, and the inputs among it, which must live as long as they are bound."""

    io: Any
    inputs: dict[str, NDArray[Any]]

    def feed(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Bind a call's inputs; those of the shape of before, as in every step of one token, are copied in place."""
        for name, array in inputs.items():
            bound = self.inputs.get(name)
            if bound is not None and bound.shape == array.shape:
                bound[...] = array
            else:
                self.inputs.pop(name, None)  # an interruption must not leave another array here than is bound
                self.io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
                self.inputs[name] = array


class ChunkedCache(StaticCache):
    """Static buffers, those of chunked layers with the slots of one chunk, which every chunk fills from the first on.

    A call that continues into the next chunk writes over this one. A copy is kept until the append has succeeded.
    """

    def slots(self, manifest: Manifest) -> list[int]:
        """Slots of each buffer."""
        return [min(self.capacity, layer.capacity or self.capacity) for layer in manifest.kv_layers for _ in "kv"]

    def mark(self, losing: Iterable[tuple[int, int]]) -> dict[int, list[NDArray[Any]]]:
        """Copies of the rows' chunks."""
        return {row: [part.copy() for part in self._chunk(row, slots)] for row, slots in losing}

    def restore(self, mark: dict[int, list[NDArray[Any]]]) -> None:
        """Put the chunks back."""
        for row, parts in mark.items():
            for view, part in zip(self._chunk(row, parts[0].shape[1] if parts else 0), parts, strict=True):
                view[:] = part

    def _chunk(self, row: int, slots: int) -> Arrays:
        return [array[row, :, :slots] for array, local in zip(self.arrays, self.spec.local, strict=True) if local]


class ConcatCache(HostCache):
    """Caches that each call hands out one piece longer."""

    def __init__(self, inference: onnxruntime.InferenceSession, manifest: Manifest, batch: int, capacity: int) -> None:
        super().__init__(inference, manifest, batch, capacity)
        self.reset()

    def run(self, call: Call) -> NDArray[np.float32]:
        """Past in, present out; a single row is taken out of the batch at its own length and put back."""
        held, row = int(call.lengths.max()), call.row
        rows = slice(None) if row is None else slice(row, row + 1)
        pasts = [array[rows, :, :held] for array in self.arrays]
        feeds = {**call.inputs(), **dict(zip(self.spec.past, pasts, strict=True))}
        logits, *presents = self.inference.run(["logits", *self.spec.present], feeds)
        if row is None or self.batch == 1:
            self.arrays = presents
        else:
            self.arrays = [self._with_row(*pair, row) for pair in zip(self.arrays, presents, strict=True)]
        return np.asarray(logits)

    def put(self, row: int, tokens: Arrays) -> None:
        """New arrays, in which the other rows are as they were."""
        pairs = zip(self.arrays, tokens, strict=True)
        self.arrays = [self._with_row(array, part[None], row) for array, part in pairs]

    def fill(self, rows: Sequence[Arrays]) -> None:
        """Arrays as long as the longest row, made once."""
        longest = max(tokens[0].shape[1] for tokens in rows)
        self.arrays = self.new_arrays([longest] * len(self.spec.names))
        for row, tokens in enumerate(rows):
            for array, part in zip(self.arrays, tokens, strict=True):
                array[row, :, : part.shape[1]] = part

    def mark(self, losing: Iterable[tuple[int, int]]) -> list[NDArray[Any]]:
        """The arrays as they are: calls replace them and never write into them."""
        return self.arrays

    def restore(self, mark: list[NDArray[Any]]) -> None:
        """The arrays of before."""
        self.arrays = mark

    def reset(self) -> None:
        """No slots."""
        self.arrays = self.new_arrays([0] * len(self.spec.names))

    def _with_row(self, array: NDArray[Any], present: NDArray[Any], row: int) -> NDArray[Any]:
        slots = max(array.shape[2], present.shape[2])
        (grown,) = self.new_arrays([slots])
        grown[:, :, : array.shape[2]] = array
        grown[row, :, : present.shape[2]] = present[0]
        return grown
