"""What a session knows of its KV cache, whichever memory it lies in, and of one decoder call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest

__all__ = ["Arrays", "CacheSpec", "Call", "KVCache", "NewCache", "numpy_dtype"]

Arrays = Sequence[NDArray[Any]]
"""One array for each name of a `CacheSpec`."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype that a manifest calls so."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


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
        """The caches that a manifest describes."""
        model, chunked = manifest.model, manifest.kv_layout == "chunked"
        names = tuple(f"{layer}.{kind}" for layer in range(model.num_hidden_layers) for kind in ("key", "value"))
        local = tuple(chunked and layer.kind == "chunked" for layer in manifest.kv_layers for _ in ("key", "value"))
        storage = manifest.kv_storage
        width = model.head_dim // storage.channels_per_element
        return cls(names, local, model.num_key_value_heads, width, numpy_dtype(storage.dtype))

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
        features: [image_tokens, D], of the image tokens among the ids, row by row; or none for all of them, which are
            then text. None where the decoder sees no images.
    """

    row: int | None
    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    last_only: bool
    features: NDArray[Any] | None = None

    def inputs(self) -> dict[str, NDArray[Any]]:
        """The decoder's inputs. The mask covers the new tokens only, so that a call costs no more after many."""
        images = {} if self.features is None else {"image_features": self.features}
        return {
            "input_ids": self.ids.copy(),  # which a binding may keep, and write the next call's over
            "attention_mask": (np.arange(self.ids.shape[1]) < self.counts[:, None]).astype(np.int64),
            "mask_start": self.lengths.copy(),
            "cache_start": self.starts.copy(),
            "logits_to_keep": np.asarray(int(self.last_only), dtype=np.int64),
            **images,
        }


class KVCache(ABC):
    """Keys and values of `batch` rows, each in the first slots of its layer's array [batch, kv_heads, slots, width].

    Attributes:
        spec: What the arrays have in common.
    """

    def __init__(self, manifest: Manifest, batch: int, capacity: int) -> None:
        self.spec = CacheSpec.of(manifest)
        self.batch = batch
        self.capacity = capacity
        self.vocab = manifest.model.vocab_size

    @abstractmethod
    def run(self, call: Call) -> NDArray[np.float32]:
        """Logits of a call, float32 [b, S or 1, vocab]; the caches then hold its tokens."""

    @abstractmethod
    def put(self, row: int, tokens: Arrays) -> None:
        """Let a row hold these tokens, as `tokens` gave them, in place of its own."""

    def fill(self, rows: Sequence[Arrays]) -> None:
        """Take over the tokens of every row, as `tokens` gave them; the cache must be empty."""
        for row, tokens in enumerate(rows):
            self.put(row, tokens)

    @abstractmethod
    def mark(self, losing: Iterable[tuple[int, int]]) -> Any:
        """What `restore` needs to undo the calls that follow; `losing` are (row, slots) of chunks they write over."""

    @abstractmethod
    def restore(self, mark: Any) -> None:
        """Back to the state of `mark`; the session resets its lengths itself."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    @abstractmethod
    def tokens(self, row: int, count: int, local_count: int) -> Arrays:
        """A row's tokens [kv_heads, count, width], to be read only; `local_count` in layers that keep one chunk."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all keys and values."""


NewCache = Callable[[Manifest, int, int], KVCache]
"""Makes an empty cache in the layout of an engine, for `batch` rows of up to `capacity` tokens."""
