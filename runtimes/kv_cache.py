"""The KV buffers of a session and the decoder calls on them, one class a layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.manifest import Manifest

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["CacheSpec", "Call", "ChunkedCache", "ConcatCache", "KVCache", "StaticCache", "new_cache"]

_STORAGE: dict[str, tuple[type[np.generic], int]] = {
    "fp32": (np.float32, 1),
    "fp16": (np.float16, 1),
    "int8": (np.int8, 1),
    "int4": (np.uint8, 2),
}
"""KV dtype -> what it is stored in, and how many channels share one element of that."""

Arrays = Sequence[NDArray[Any]]
"""One array for each name of a `CacheSpec`."""


@dataclass(frozen=True)
class CacheSpec:
    """What an engine's caches are: one array for the keys and one for the values of every layer.

    Attributes:
        names: `{layer}.key`, `{layer}.value`.
        local: For each array, whether its layer keeps one chunk only.
        heads: Key/value heads.
        width: Elements that a head takes: its channels, or half as many bytes where two share one.
        dtype: Of keys and values, as they are stored.
    """

    names: tuple[str, ...]
    local: tuple[bool, ...]
    heads: int
    width: int
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, manifest: Manifest) -> CacheSpec:
        """As the manifest has it."""
        model, chunked = manifest.model, manifest.kv_layout == "chunked"
        names = tuple(f"{layer}.{kind}" for layer in range(model.num_hidden_layers) for kind in ("key", "value"))
        local = tuple(chunked and layer.kind == "chunked" for layer in manifest.kv_layers for _ in ("key", "value"))
        dtype, channels = _STORAGE[manifest.precision["kv_cache"]]
        return cls(names, local, model.num_key_value_heads, model.head_dim // channels, np.dtype(dtype))

    @property
    def past(self) -> list[str]:
        """The decoder's inputs."""
        return [f"past_key_values.{name}" for name in self.names]

    @property
    def present(self) -> list[str]:
        """The decoder's outputs."""
        return [f"present.{name}" for name in self.names]

    def shapes(self, count: int, local_count: int) -> list[tuple[int, int, int]]:
        """Of one row's tokens in every array, [kv_heads, tokens, width]; `local_count` of one chunk."""
        return [(self.heads, local_count if local else count, self.width) for local in self.local]


@dataclass(frozen=True)
class Call:
    """What one decoder call is fed, beside the caches.

    Attributes:
        row: The row that it extends, or None for all of them.
        ids: int64 [b, S], b being 1 or the batch; padded on the right.
        counts: int64 [b], the real ones among them.
        lengths: int64 [b], tokens that lie in the cache before the call.
        starts: int64 [b], positions of the first of those.
        last_only: Logits of each row's last real token only.
    """

    row: int | None
    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    last_only: bool

    def inputs(self) -> dict[str, NDArray[np.int64]]:
        """The decoder's inputs. The mask covers the new tokens only, so that a call costs no more after many."""
        return {
            "input_ids": np.ascontiguousarray(self.ids),
            "attention_mask": (np.arange(self.ids.shape[1]) < self.counts[:, None]).astype(np.int64),
            "mask_start": self.lengths.copy(),
            "cache_start": self.starts.copy(),
            "logits_to_keep": np.asarray(int(self.last_only), dtype=np.int64),
        }


class KVCache(ABC):
    """Keys and values of `batch` rows, each in the first slots of its layer's array [batch, kv_heads, slots, width].

    Attributes:
        spec: What the arrays have in common.
        arrays: Keys and values of every layer, in the order of `spec`.
    """

    def __init__(self, inference: onnxruntime.InferenceSession, manifest: Manifest, batch: int, capacity: int) -> None:
        self.inference = inference
        self.spec = CacheSpec.of(manifest)
        self.batch = batch
        self.capacity = capacity
        self.vocab = manifest.model.vocab_size
        self.arrays: list[NDArray[Any]] = []

    @abstractmethod
    def run(self, call: Call) -> NDArray[np.float32]:
        """Logits of a call, float32 [b, S or 1, vocab]; the caches then hold its tokens."""

    @abstractmethod
    def fill(self, rows: Sequence[Arrays]) -> None:
        """Take over the tokens of every row, as `tokens` gave them; the cache must be empty."""

    @abstractmethod
    def mark(self, losing: Iterable[tuple[int, int]]) -> Any:
        """What `restore` needs to undo the calls that follow; `losing` are (row, slots) of chunks they write over."""

    @abstractmethod
    def restore(self, mark: Any) -> None:
        """Back to the state of `mark`; the session resets its lengths itself."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    def tokens(self, row: int, count: int, local_count: int) -> Arrays:
        """Views [kv_heads, count, width] of a row's tokens; `local_count` in layers that keep one chunk."""
        return [
            array[row, :, : local_count if local else count]
            for array, local in zip(self.arrays, self.spec.local, strict=True)
        ]

    def new_arrays(self, slots: Sequence[int]) -> list[NDArray[Any]]:
        """Zeros, with so many slots in each array."""
        heads, width = self.spec.heads, self.spec.width
        return [np.zeros((self.batch, heads, count, width), dtype=self.spec.dtype) for count in slots]


def new_cache(inference: onnxruntime.InferenceSession, manifest: Manifest, batch: int, capacity: int) -> KVCache:
    """An empty cache in the engine's layout; `capacity` in tokens a row."""
    kinds: dict[str, type[KVCache]] = {"concat": ConcatCache, "static": StaticCache, "chunked": ChunkedCache}
    return kinds[manifest.kv_layout](inference, manifest, batch, capacity)


class StaticCache(KVCache):
    """Buffers of `capacity` slots that the decoder updates in place: the same memory is its input and its output.

    Slots behind a row's length hold leftovers that nobody reads and the next tokens overwrite, so undoing a call needs
    nothing here.
    """

    def __init__(self, inference: onnxruntime.InferenceSession, manifest: Manifest, batch: int, capacity: int) -> None:
        super().__init__(inference, manifest, batch, capacity)
        self.arrays = self.new_arrays(self.slots(manifest))
        self._bindings: dict[int | None, Any] = {}

    def slots(self, manifest: Manifest) -> list[int]:
        """Slots of each buffer."""
        return [self.capacity] * len(self.spec.names)

    def run(self, call: Call) -> NDArray[np.float32]:
        """Bound by address, so nothing is copied; the arrays outlive the call."""
        binding = self._binding(call.row)
        inputs = call.inputs()
        rows, tokens = call.ids.shape
        logits = np.empty((rows, 1 if call.last_only else tokens, self.vocab), dtype=np.float32)
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self.inference.run_with_iobinding(binding)
        return logits

    def fill(self, rows: Sequence[Arrays]) -> None:
        """Copies the slots that are used."""
        for row, tokens in enumerate(rows):
            for array, part in zip(self.arrays, tokens, strict=True):
                array[row, :, : part.shape[1]] = part

    def mark(self, losing: Iterable[tuple[int, int]]) -> Any:
        """Nothing to remember."""

    def restore(self, mark: Any) -> None:
        """Nothing to undo."""

    def reset(self) -> None:
        """Nothing to clear: no slot is read before it is written."""

    def _binding(self, row: int | None) -> Any:
        """The call's binding with its caches bound, made once for each row and once for all of them."""
        if row not in self._bindings:
            binding = self.inference.io_binding()
            for past, present, buffer in zip(self.spec.past, self.spec.present, self.arrays, strict=True):
                part = buffer if row is None else buffer[row : row + 1]
                binding.bind_input(past, "cpu", 0, self.spec.dtype, part.shape, part.ctypes.data)
                binding.bind_output(present, "cpu", 0, self.spec.dtype, part.shape, part.ctypes.data)
            self._bindings[row] = binding
        return self._bindings[row]


class ChunkedCache(StaticCache):
    """Static buffers, those of chunked layers with the slots of one chunk, which every chunk fills from the first on.

    A call that goes on into the next chunk writes over this one; until an append has succeeded, a copy is kept.
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


class ConcatCache(KVCache):
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

    def fill(self, rows: Sequence[Arrays]) -> None:
        """Arrays as long as the longest row."""
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
