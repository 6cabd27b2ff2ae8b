"""What a decoder call binds: every input and output with its dtype and shape, and the buffer in which it lies.

Follows from the manifest alone, so that it can be computed, and tested, without the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from l4export.engine.manifest import Manifest, TensorSpec
from l4export.engine.profiles import TokenRange
from l4export.errors import InputError
from l4export.runtimes.cache.kv_cache import CacheSpec, numpy_dtype

__all__ = ["BindingPlan", "Tensor", "plan_bindings"]

_HANDED_ON = "hidden_states."


@dataclass(frozen=True)
class Tensor:
    """An input or output of the decoder.

    Attributes:
        name: As the decoder calls it.
        dtype: Of its elements.
        shape: Numbers, and names of sizes that differ from call to call.
        is_output: Whether the decoder writes it.
        on_host: Whether its address lies in the host's memory.
        cache: The session's buffer in which it lies, such as `0.key`: an input and an output share each of them. None
            where it is of one call only.
        is_handed_on: Whether it is what one part of the decoder gives and the next one takes.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]
    is_output: bool
    on_host: bool
    cache: str | None
    is_handed_on: bool

    def shape_in(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape when the sizes are these."""
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in self.shape)


@dataclass(frozen=True)
class BindingPlan:
    """Everything a call binds.

    Attributes:
        parts: All inputs and outputs of each part of the decoder, in the order in which they run; mostly there is one.
        profiles: Optimisation profiles, as the new tokens a call of each may have: least, likeliest, most.
        chunk: Slots of a cache of one chunk; None where there is none.
    """

    parts: tuple[tuple[Tensor, ...], ...]
    profiles: tuple[TokenRange, ...]
    chunk: int | None

    @property
    def logits(self) -> Tensor:
        """The output of the last part that is no cache."""
        return next(tensor for tensor in self.parts[-1] if tensor.name == "logits")

    def profile(self, tokens: int) -> int:
        """The first optimisation profile for calls of so many new tokens.

        Raises:
            InputError: there is none.
        """
        for index, (least, _, most) in enumerate(self.profiles):
            if least <= tokens <= most:
                return index
        raise InputError(f"the engine has no optimisation profile for {tokens} tokens in a call")

    def sizes(self, rows: int, tokens: int, last_only: bool, capacity: int, image_tokens: int = 0) -> dict[str, int]:
        """What the names in shapes stand for, in a call of `tokens` new tokens for each of `rows` rows.

        Of all these tokens, `image_tokens` have features.
        """
        return {
            **dict.fromkeys(("batch", "batch_or_1"), rows),
            **dict.fromkeys(("sequence", "total"), tokens),
            "logits_sequence": 1 if last_only else tokens,
            "image_tokens": image_tokens,
            "capacity": capacity,
            "chunk_capacity": min(capacity, self.chunk or capacity),
        }

    def cache_shapes(self, rows: int, capacity: int) -> dict[str, tuple[int, ...]]:
        """Shape [rows, kv_heads, slots, width] of each of the session's buffers."""
        sizes = self.sizes(rows, 1, True, capacity)
        tensors = itertools.chain(*self.parts)
        return {tensor.cache: tensor.shape_in(sizes) for tensor in tensors if tensor.cache is not None}


def plan_bindings(
    manifest: Manifest, profiles: Sequence[TokenRange], on_host: Callable[[TensorSpec], bool]
) -> BindingPlan:
    """The plan of an engine. `on_host` says which tensors of one call the host keeps.

    Raises:
        InputError: caches that do not stay in place.
    """
    if manifest.kv_layout == "concat":
        raise InputError("caches of layout concat do not stay in place; build the engine again with --kv-layout static")
    spec = CacheSpec.of(manifest)
    caches = {**dict(zip(spec.past, spec.names, strict=True)), **dict(zip(spec.present, spec.names, strict=True))}

    def tensor(told: TensorSpec, is_output: bool) -> Tensor:
        cache = caches.get(told.name)
        host, handed_on = cache is None and on_host(told), told.name.startswith(_HANDED_ON)
        return Tensor(told.name, numpy_dtype(told.dtype), told.shape, is_output, host, cache, handed_on)

    parts = tuple(
        (*(tensor(told, False) for told in part.inputs), *(tensor(told, True) for told in part.outputs))
        for part in manifest.decoder.parts or [manifest.decoder]
    )
    return BindingPlan(parts, tuple(profiles), manifest.prefill_cut)
