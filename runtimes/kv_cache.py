"""The KV buffers of a session and the decoder calls on them, one class a layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.manifest import Manifest

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["ConcatCache", "KVCache", "StaticCache"]

_DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}


class KVCache(ABC):
    """Keys and values of `batch` rows. Row r's tokens lie in slots 0 .. length_r - 1."""

    def __init__(self, inference: onnxruntime.InferenceSession, manifest: Manifest, batch: int, capacity: int) -> None:
        model = manifest.model
        self.inference = inference
        self.batch = batch
        self.capacity = capacity
        self.vocab = model.vocab_size
        self.heads, self.head_dim = model.num_key_value_heads, model.head_dim
        self.dtype: np.dtype[Any] = _DTYPES[manifest.precision["kv_cache"]]
        kinds = [(layer, kind) for layer in range(model.num_hidden_layers) for kind in ("key", "value")]
        self.past_names = [f"past_key_values.{layer}.{kind}" for layer, kind in kinds]
        self.present_names = [f"present.{layer}.{kind}" for layer, kind in kinds]

    @abstractmethod
    def run(
        self, row: int | None, ids: NDArray[np.int64], lengths: NDArray[np.int64], last_only: bool
    ) -> NDArray[np.float32]:
        """One decoder call on one row, or on all rows (`row` None).

        Args:
            row: The row, or None.
            ids: int64 [b, S], b being 1 or `batch`; padded on the right.
            lengths: int64 [b], tokens that each row holds after the call.
            last_only: Logits of each row's last real token only.

        Returns:
            Logits, float32 [b, S or 1, vocab].
        """

    @abstractmethod
    def mark(self) -> Any:
        """What `restore` needs to undo the calls that follow."""

    @abstractmethod
    def restore(self, mark: Any) -> None:
        """Back to the state of `mark`; the session resets its lengths itself."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""


def _mask(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """attention_mask int64 [b, total]: ones for a row's tokens, zeros behind them."""
    total = max(int(lengths.max()), ids.shape[1])
    return (np.arange(total) < lengths[:, None]).astype(np.int64)


class StaticCache(KVCache):
    """Buffers of `capacity` slots that the decoder updates in place: the same memory is its input and its output.

    Slots behind a row's length hold leftovers that nobody reads and the next tokens overwrite, so undoing a call needs
    nothing here.
    """

    def __init__(self, inference: onnxruntime.InferenceSession, manifest: Manifest, batch: int, capacity: int) -> None:
        super().__init__(inference, manifest, batch, capacity)
        shape = (batch, self.heads, capacity, self.head_dim)
        self.buffers = [np.zeros(shape, dtype=self.dtype) for _ in self.past_names]
        self._bindings: dict[int | None, Any] = {}

    def run(
        self, row: int | None, ids: NDArray[np.int64], lengths: NDArray[np.int64], last_only: bool
    ) -> NDArray[np.float32]:
        """Bound by address, so nothing is copied; the arrays outlive the call."""
        binding = self._binding(row)
        mask = _mask(ids, lengths)
        keep = np.asarray(int(last_only), dtype=np.int64)
        ids = np.ascontiguousarray(ids)
        logits = np.empty((len(ids), 1 if last_only else ids.shape[1], self.vocab), dtype=np.float32)
        for name, array in (("input_ids", ids), ("attention_mask", mask), ("logits_to_keep", keep)):
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self.inference.run_with_iobinding(binding)
        return logits

    def mark(self) -> None:
        """Nothing to remember."""

    def restore(self, mark: None) -> None:
        """Nothing to undo."""

    def reset(self) -> None:
        """Nothing to clear: no slot is read before it is written."""

    def _binding(self, row: int | None) -> Any:
        """The call's binding with its caches bound, made once for each row and once for all of them."""
        if row not in self._bindings:
            binding = self.inference.io_binding()
            for past, present, buffer in zip(self.past_names, self.present_names, self.buffers, strict=True):
                part = buffer if row is None else buffer[row : row + 1]
                binding.bind_input(past, "cpu", 0, self.dtype, part.shape, part.ctypes.data)
                binding.bind_output(present, "cpu", 0, self.dtype, part.shape, part.ctypes.data)
            self._bindings[row] = binding
        return self._bindings[row]


class ConcatCache(KVCache):
    """Caches that each call hands out one piece longer."""

    def __init__(self, inference: onnxruntime.InferenceSession, manifest: Manifest, batch: int, capacity: int) -> None:
        super().__init__(inference, manifest, batch, capacity)
        self.caches: list[NDArray[Any]] = []
        self.reset()

    def run(
        self, row: int | None, ids: NDArray[np.int64], lengths: NDArray[np.int64], last_only: bool
    ) -> NDArray[np.float32]:
        """Past in, present out; a single row is taken out of the batch at its own length and put back."""
        held = int(lengths.max()) - ids.shape[1] if row is not None else None
        pasts = self.caches if row is None else [cache[row : row + 1, :, :held] for cache in self.caches]
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": _mask(ids, lengths),
            "logits_to_keep": np.asarray(int(last_only), dtype=np.int64),
            **dict(zip(self.past_names, pasts, strict=True)),
        }
        logits, *presents = self.inference.run(["logits", *self.present_names], feeds)
        if row is None or self.batch == 1:
            self.caches = presents
        else:
            self.caches = [self._with_row(*pair, row) for pair in zip(self.caches, presents, strict=True)]
        return np.asarray(logits)

    def mark(self) -> list[NDArray[Any]]:
        """The arrays as they are: calls replace them and never write into them."""
        return self.caches

    def restore(self, mark: list[NDArray[Any]]) -> None:
        """The arrays of before."""
        self.caches = mark

    def reset(self) -> None:
        """No slots."""
        shape = (self.batch, self.heads, 0, self.head_dim)
        self.caches = [np.zeros(shape, dtype=self.dtype) for _ in self.past_names]

    def _with_row(self, cache: NDArray[Any], present: NDArray[Any], row: int) -> NDArray[Any]:
        slots = max(cache.shape[2], present.shape[2])
        grown: NDArray[Any] = np.zeros((self.batch, self.heads, slots, self.head_dim), dtype=self.dtype)
        grown[:, :, : cache.shape[2]] = cache
        grown[row, :, : present.shape[2]] = present[0]
        return grown
