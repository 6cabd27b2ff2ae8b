"""What a decoder call binds: every input and output with its dtype and shape, and the buffer in which it lies.

Follows from the manifest alone, so that it can be computed, and tested, without the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from l4export.errors import InputError
from l4export.manifest import Manifest
from l4export.runtimes.kv_cache import CacheSpec
from l4export.tensorrt_engine import TokenRange

__all__ = ["BindingPlan", "Tensor", "plan_bindings"]

_DTYPES = {name: np.dtype(name) for name in ("int64", "float32", "float16")}
_DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
_CALL_INPUTS = frozenset({"input_ids", "attention_mask", "mask_start", "cache_start", "logits_to_keep"})


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
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]
    is_output: bool
    on_host: bool
    cache: str | None

    def shape_in(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape when the sizes are these."""
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in self.shape)


@dataclass(frozen=True)
class BindingPlan:
    """Everything a call binds.

    Attributes:
        tensors: All inputs and outputs.
        profiles: Optimisation profiles, as the new tokens a call of each may have: least, likeliest, most.
        chunk: Slots of a cache of one chunk; None where there is none.
    """

    tensors: tuple[Tensor, ...]
    profiles: tuple[TokenRange, ...]
    chunk: int | None

    @property
    def of_call(self) -> list[Tensor]:
        """The tensors that each call brings or fetches."""
        return [tensor for tensor in self.tensors if tensor.cache is None]

    @property
    def of_caches(self) -> list[Tensor]:
        """The inputs and outputs that lie in the session's buffers."""
        return [tensor for tensor in self.tensors if tensor.cache is not None]

    def profile(self, tokens: int) -> int:
        """The first optimisation profile for calls of so many new tokens.

        Raises:
            InputError: there is none.
        """
        for index, (least, _, most) in enumerate(self.profiles):
            if least <= tokens <= most:
                return index
        raise InputError(f"the engine has no optimisation profile for {tokens} tokens in a call")

    def sizes(self, rows: int, tokens: int, last_only: bool, capacity: int) -> dict[str, int]:
        """What the names in shapes stand for, in a call of `tokens` new tokens for each of `rows` rows."""
        return {
            **dict.fromkeys(("batch", "batch_or_1"), rows),
            **dict.fromkeys(("sequence", "total"), tokens),
            "logits_sequence": 1 if last_only else tokens,
            "capacity": capacity,
            "chunk_capacity": min(capacity, self.chunk or capacity),
        }

    def cache_shapes(self, rows: int, capacity: int) -> dict[str, tuple[int, ...]]:
        """Shape [rows, kv_heads, slots, width] of each of the session's buffers."""
        sizes = self.sizes(rows, 1, True, capacity)
        return {tensor.cache: tensor.shape_in(sizes) for tensor in self.of_caches if tensor.cache is not None}


def plan_bindings(
    manifest: Manifest, profiles: Sequence[TokenRange], on_host: Callable[[str, tuple[int | str, ...]], bool]
) -> BindingPlan:
    """The plan of an engine. `on_host(name, shape)` says which tensors of one call the host keeps.

    Raises:
        InputError: the manifest does not tell of a decoder's inputs and outputs, or of caches that stay in place.
    """
    spec = CacheSpec.of(manifest)
    caches = {**dict(zip(spec.past, spec.names, strict=True)), **dict(zip(spec.present, spec.names, strict=True))}
    declared = [*((value, False) for value in manifest.inputs), *((value, True) for value in manifest.outputs)]
    try:
        tensors = tuple(_tensor(value, is_output, caches, on_host) for value, is_output in declared)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the manifest's inputs and outputs are malformed ({error}); build the engine again") from None
    by_name = {tensor.name: tensor for tensor in tensors}
    pairs = [(by_name.get(past), by_name.get(present)) for past, present in zip(spec.past, spec.present, strict=True)]
    if set(by_name) != {*_CALL_INPUTS, "logits", *caches} or len(by_name) != len(tensors):
        raise InputError("the manifest tells of other inputs and outputs than a decoder's; build the engine again")
    if any(past is None or present is None or past.shape != present.shape for past, present in pairs):
        raise InputError("the manifest tells of caches that do not stay in place; build the engine again")
    return BindingPlan(tensors, tuple(profiles), manifest.prefill_cut)


def _tensor(
    value: Mapping[str, Any],
    is_output: bool,
    caches: Mapping[str, str],
    on_host: Callable[[str, tuple[int | str, ...]], bool],
) -> Tensor:
    name, shape = value["name"], tuple(value["shape"])
    sizes = BindingPlan((), (), None).sizes(1, 1, True, 1)
    if not all((type(dim) is int and dim > 0) or dim in sizes for dim in shape):
        raise ValueError(f"{name}: shape {list(shape)}")
    cache = caches.get(name)
    return Tensor(name, _DTYPES[value["dtype"]], shape, is_output, cache is None and on_host(name, shape), cache)
