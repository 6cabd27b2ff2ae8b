"""A KV cache in the memory of a device, and the decoder calls on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest
from l4export.runtimes.cache.binding_plan import BindingPlan, Tensor
from l4export.runtimes.cache.call_memory import CallMemory
from l4export.runtimes.cache.device import Binding, Buffer, Device
from l4export.runtimes.cache.kv_cache import Arrays, Call, KVCache

__all__ = ["DeviceCache"]


@dataclass(frozen=True)
class _Calls:
    """Calls that share bindings, one a part, and the memory of what is no cache.

    Attributes:
        bindings: Of every part; its caches are bound.
        memory: Where inputs and outputs lie.
        bound: What is bound beside the caches: of each part, the shape and the address by the tensor's name.
    """

    bindings: list[Binding]
    memory: CallMemory
    bound: list[dict[str, tuple[tuple[int, ...], int]]]


class DeviceCache(KVCache):
    """Buffers that stay where they are: the same address is a cache's input and output, in every profile.

    A call sends its ids and lengths and fetches its logits; keys and values leave the device only when they are saved,
    forked or copied, or when there is no room for the copy of a chunk that is about to be written over (see `mark`).

    Where the device records steps of one token, they have bindings and memory of their own, in which nothing moves from
    the first step on.
    """

    def __init__(self, device: Device, plan: BindingPlan, manifest: Manifest, batch: int, capacity: int) -> None:
        super().__init__(manifest, batch, capacity)
        self._device = device
        self._plan = plan
        self._shapes = plan.cache_shapes(batch, capacity)
        self._buffers = {name: device.allocate(self._nbytes(name)) for name in self.spec.names}
        self._calls: dict[tuple[int | None, int, bool], _Calls] = {}
        self._prompts = CallMemory(device)

    @property
    def nbytes(self) -> int:
        """Of the buffers."""
        return sum(map(self._nbytes, self.spec.names))

    def run(self, call: Call) -> NDArray[np.float32]:
        """Bind what is the call's own and execute, part by part; fetch the logits."""
        rows, tokens = call.ids.shape
        image_tokens = 0 if call.features is None else len(call.features)
        is_step = self._device.records_steps and tokens == 1 and rows == self.batch and not image_tokens
        if tokens == 1:
            call = replace(call, last_only=True)  # the same logits, and one kind of step
        sizes = self._plan.sizes(rows, tokens, call.last_only, self.capacity, image_tokens)
        calls, inputs = self._calls_like(call.row, self._plan.profile(tokens), is_step), call.inputs()
        for part, binding, bound in zip(self._plan.parts, calls.bindings, calls.bound, strict=True):
            for tensor in part:
                if tensor.cache is None:
                    _bind(binding, bound, tensor, tensor.shape_in(sizes), calls.memory)
                if tensor.name in inputs:
                    calls.memory.send(tensor, inputs[tensor.name])
            binding.run()
        return calls.memory.fetch(self._plan.logits)

    def put(self, row: int, tokens: Arrays) -> None:
        """Sends the tokens, head by head: those of one lie side by side."""
        for name, part in zip(self.spec.names, tokens, strict=True):
            head_bytes = self._row_bytes(name) // self.spec.heads
            for head, array in enumerate(part):
                if array.size:
                    at = row * self._row_bytes(name) + head * head_bytes
                    self._buffers[name].write(np.ascontiguousarray(array), at)

    def mark(self, losing: Iterable[tuple[int, int]]) -> dict[str, Buffer | NDArray[Any]]:
        """Copies of the caches of one chunk, where a row writes over its own: on the device, or else on the host."""
        if not any(slots for _, slots in losing):
            return {}
        return {name: self._copy(name) for name, local in zip(self.spec.names, self.spec.local, strict=True) if local}

    def restore(self, mark: dict[str, Buffer | NDArray[Any]]) -> None:
        """Put the copies back; in the other caches nothing after a row's length is read."""
        for name, copy in mark.items():
            if isinstance(copy, np.ndarray):
                self._buffers[name].write(copy)
            else:
                self._buffers[name].take(copy)

    def reset(self) -> None:
        """Nothing to clear: no slot is read before it is written."""

    def tokens(self, row: int, count: int, local_count: int) -> Arrays:
        """Fetched from the device."""
        named = zip(self.spec.names, self.spec.local, strict=True)
        return [self._read_row(name, row)[:, : local_count if local else count] for name, local in named]

    def _calls_like(self, row: int | None, profile: int, is_step: bool) -> _Calls:
        """Of a row, or of all of them, with the caches bound; made once."""
        key = row, profile, is_step
        if key not in self._calls:
            bindings = [self._device.binding(part, profile, is_step) for part in range(len(self._plan.parts))]
            for part, binding in zip(self._plan.parts, bindings, strict=True):
                self._bind_caches(part, binding, row)
            memory = CallMemory(self._device) if is_step else self._prompts
            self._calls[key] = _Calls(bindings, memory, [{} for _ in bindings])
        return self._calls[key]

    def _bind_caches(self, part: Sequence[Tensor], binding: Binding, row: int | None) -> None:
        for tensor in part:
            if tensor.cache is not None:
                shape, address = self._shapes[tensor.cache], self._buffers[tensor.cache].address
                if row is not None:
                    shape, address = (1, *shape[1:]), address + row * self._row_bytes(tensor.cache)
                binding.bind(tensor, shape, address)

    def _copy(self, name: str) -> Buffer | NDArray[Any]:
        try:
            return self._buffers[name].copy()
        except MemoryError:
            return self._read(name)

    def _read(self, name: str) -> NDArray[Any]:
        array = np.empty(self._shapes[name], dtype=self.spec.dtype)
        self._buffers[name].read(array)
        return array

    def _read_row(self, name: str, row: int) -> NDArray[Any]:
        array = np.empty(self._shapes[name][1:], dtype=self.spec.dtype)
        self._buffers[name].read(array, row * self._row_bytes(name))
        return array

    def _row_bytes(self, name: str) -> int:
        return self._nbytes(name) // self.batch

    def _nbytes(self, name: str) -> int:
        return math.prod(self._shapes[name]) * self.spec.dtype.itemsize


def _bind(
    binding: Binding,
    bound: dict[str, tuple[tuple[int, ...], int]],
    tensor: Tensor,
    shape: tuple[int, ...],
    memory: CallMemory,
) -> None:
    """Bind a tensor to its place in `memory`, unless it is bound to it."""
    place = shape, memory.address(tensor, shape)
    if bound.get(tensor.name) != place:
        bound.pop(tensor.name, None)  # an interruption must not leave it as bound
        binding.bind(tensor, *place)
        bound[tensor.name] = place
