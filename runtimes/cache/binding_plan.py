"""What a decoder call binds: every input and output with its dtype and shape, and the buffer in which it lies.

Follows from the manifest alone, so that it can be computed, and tested, without the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from l4export.engine.manifest import Manifest
from l4export.engine.profiles import TokenRange
from l4export.errors import InputError
from l4export.runtimes.cache.kv_cache import CacheSpec

__all__ = ["BindingPlan", "Tensor", "plan_bindings"]

_DTYPES = {name: np.dtype(name) for name in ("int64", "float32", "float16")}
_DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
_HANDED_ON = "hidden_states."
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
        tensors = itertools.chain(*self.parts)
        return {tensor.cache: tensor.shape_in(sizes) for tensor in tensors if tensor.cache is not None}


def plan_bindings(
    manifest: Manifest, profiles: Sequence[TokenRange], on_host: Callable[[tuple[int | str, ...]], bool]
) -> BindingPlan:
    """The plan of an engine. `on_host(shape)` says which tensors of one call the host keeps.

    Raises:
        InputError: the manifest does not tell of a decoder's inputs and outputs, or of caches that stay in place.
    """
    interfaces = [(part.inputs, part.outputs) for part in manifest.parts] or [(manifest.inputs, manifest.outputs)]
    try:
        parts = [_part(*interface, CacheSpec.of(manifest), on_host) for interface in interfaces]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the manifest's inputs and outputs are malformed ({error}); build the engine again") from None
    _check_interface(parts, manifest)
    return BindingPlan(tuple(parts), tuple(profiles), manifest.prefill_cut)


def _part(
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    spec: CacheSpec,
    on_host: Callable[[tuple[int | str, ...]], bool],
) -> tuple[Tensor, ...]:
    caches = {**dict(zip(spec.past, spec.names, strict=True)), **dict(zip(spec.present, spec.names, strict=True))}
    sizes = BindingPlan((), (), None).sizes(1, 1, True, 1)
    tensors = []
    for is_output, value in [*((False, value) for value in inputs), *((True, value) for value in outputs)]:
        name, shape, cache = value["name"], tuple(value["shape"]), caches.get(value["name"])
        if not all((type(dim) is int and dim > 0) or dim in sizes for dim in shape):
            raise ValueError(f"{name}: shape {list(shape)}")
        handed_on, host = name.startswith(_HANDED_ON), cache is None and on_host(shape)
        tensors.append(Tensor(name, _DTYPES[value["dtype"]], shape, is_output, host, cache, handed_on))
    return tuple(tensors)


def _check_interface(parts: Sequence[tuple[Tensor, ...]], manifest: Manifest) -> None:
    """Every part takes what is there by then; all that is left in the end is what a decoder gives."""
    spec = CacheSpec.of(manifest)
    there: dict[str, Tensor | None] = dict.fromkeys([*_CALL_INPUTS, *spec.past])
    for part in parts:
        inputs = {tensor.name: tensor for tensor in part if not tensor.is_output}
        outputs = {tensor.name: tensor for tensor in part if tensor.is_output}
        if len(inputs) + len(outputs) != len(part) or not set(inputs) <= set(there) or set(outputs) & set(there):
            raise _refusal("other inputs and outputs than a decoder's")
        if _caches(inputs) != _caches(outputs) or not all(_is_of(spec, *told) for told in _caches(inputs).values()):
            raise _refusal("caches that do not stay in place")
        handed_on = {name: tensor for name, tensor in inputs.items() if tensor.is_handed_on}
        if any(replace(tensor, is_output=True) != there[name] for name, tensor in handed_on.items()):
            raise _refusal("parts that do not fit one another")
        there = {name: tensor for name, tensor in there.items() if name not in inputs or name in _CALL_INPUTS}
        there |= outputs
    if set(there) != {*_CALL_INPUTS, *spec.present, "logits"}:
        raise _refusal("other inputs and outputs than a decoder's")


def _caches(tensors: Mapping[str, Tensor]) -> dict[str, tuple[np.dtype[Any], tuple[int | str, ...]]]:
    return {tensor.cache: (tensor.dtype, tensor.shape) for tensor in tensors.values() if tensor.cache is not None}


def _is_of(spec: CacheSpec, dtype: np.dtype[Any], shape: tuple[int | str, ...]) -> bool:
    """Whether buffers of the manifest's type and width are what the decoder takes."""
    return dtype == spec.dtype and len(shape) == 4 and (shape[1], shape[3]) == (spec.heads, spec.width)


def _refusal(what: str) -> InputError:
    return InputError(f"the manifest tells of {what}; build the engine again")
