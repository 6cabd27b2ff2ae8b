"""A KV cache in the memory of a device, and the decoder calls on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest
from l4export.runtimes.cache.binding_plan import BindingPlan, Tensor
from l4export.runtimes.cache.device import Binding, Buffer, Device
from l4export.runtimes.cache.kv_cache import Arrays, Call, KVCache

__all__ = ["DeviceCache"]


class DeviceCache(KVCache):
    """Buffers that stay where they are: the same address is a cache's input and output, in every profile.

    A call sends its ids and lengths and fetches its logits; keys and values never leave the device, except when they
    are saved or forked, or when a call is about to write over a chunk that is not over (see `mark`).
    """

    def __init__(self, device: Device, plan: BindingPlan, manifest: Manifest, batch: int, capacity: int) -> None:
        super().__init__(manifest, batch, capacity)
        self._device = device
        self._plan = plan
        self._shapes = plan.cache_shapes(batch, capacity)
        self._buffers = {name: device.allocate(self._nbytes(name)) for name in self.spec.names}
        self._bindings: dict[tuple[int | None, int], list[Binding]] = {}
        self._of_call: dict[str, tuple[int, Buffer]] = {}

    @property
    def nbytes(self) -> int:
        """Of the buffers."""
        return sum(map(self._nbytes, self.spec.names))

    def run(self, call: Call) -> NDArray[np.float32]:
        """Bind what is the call's own and execute, part by part; fetch the logits."""
        rows, tokens = call.ids.shape
        sizes = self._plan.sizes(rows, tokens, call.last_only, self.capacity)
        arrays: dict[str, NDArray[Any]] = {**call.inputs()}
        bindings = self._part_bindings(call.row, self._plan.profile(tokens))
        for part, binding in zip(self._plan.parts, bindings, strict=True):
            own = [tensor for tensor in part if tensor.cache is None]
            for tensor in own:
                self._bind(binding, tensor, tensor.shape_in(sizes), arrays)
            binding.run()
        for tensor in own:
            if tensor.is_output and not tensor.on_host:
                self._of_call[tensor.name][1].read(arrays[tensor.name])
        return arrays["logits"]

    def _bind(self, binding: Binding, tensor: Tensor, shape: tuple[int, ...], arrays: dict[str, NDArray[Any]]) -> None:
        """A tensor of this call: sent from `arrays`, to be fetched into them, or handed on from part to part."""
        if tensor.is_handed_on:
            nbytes = math.prod(shape) * tensor.dtype.itemsize
            binding.bind(tensor, shape, self._buffer_of_call(tensor.name, nbytes).address)
            return
        if tensor.is_output or not all(shape):  # `image_features` of a text has no rows
            arrays[tensor.name] = np.empty(shape, dtype=tensor.dtype)
        array = arrays[tensor.name]
        assert array.shape == shape and array.dtype == tensor.dtype
        if tensor.on_host:
            binding.bind(tensor, shape, array.ctypes.data)
            return
        buffer = self._buffer_of_call(tensor.name, max(1, array.nbytes))
        if not tensor.is_output:
            buffer.write(array)
        binding.bind(tensor, shape, buffer.address)

    def fill(self, rows: Sequence[Arrays]) -> None:
        """Sends whole buffers, zeros where there is no token."""
        for index, name in enumerate(self.spec.names):
            array = np.zeros(self._shapes[name], dtype=self.spec.dtype)
            for row, tokens in enumerate(rows):
                array[row, :, : tokens[index].shape[1]] = tokens[index]
            self._buffers[name].write(array)

    def mark(self, losing: Iterable[tuple[int, int]]) -> dict[str, NDArray[Any]]:
        """Copies, on the host, of the caches of one chunk, where a row writes over its own."""
        if not any(slots for _, slots in losing):
            return {}
        return {name: self._read(name) for name, local in zip(self.spec.names, self.spec.local, strict=True) if local}

    def restore(self, mark: dict[str, NDArray[Any]]) -> None:
        """Put the copies back; in the other caches nothing after a row's length is read."""
        for name, array in mark.items():
            self._buffers[name].write(array)

    def reset(self) -> None:
        """Nothing to clear: no slot is read before it is written."""

    def tokens(self, row: int, count: int, local_count: int) -> Arrays:
        """Fetched from the device."""
        named = zip(self.spec.names, self.spec.local, strict=True)
        return [self._read(name)[row, :, : local_count if local else count] for name, local in named]

    def _part_bindings(self, row: int | None, profile: int) -> list[Binding]:
        """Of every part, the caches of a row, or of all of them, bound once for each profile."""
        if (row, profile) not in self._bindings:
            bindings = [self._device.binding(part, profile) for part in range(len(self._plan.parts))]
            for part, binding in zip(self._plan.parts, bindings, strict=True):
                self._bind_caches(part, binding, row)
            self._bindings[row, profile] = bindings
        return self._bindings[row, profile]

    def _bind_caches(self, part: Sequence[Tensor], binding: Binding, row: int | None) -> None:
        for tensor in part:
            if tensor.cache is not None:
                shape, address = self._shapes[tensor.cache], self._buffers[tensor.cache].address
                if row is not None:
                    shape, address = (1, *shape[1:]), address + row * self._nbytes(tensor.cache) // self.batch
                binding.bind(tensor, shape, address)

    def _buffer_of_call(self, name: str, nbytes: int) -> Buffer:
        """Kept for as long as calls have the same size, as those of decoding have."""
        size, buffer = self._of_call.get(name, (0, None))
        if buffer is None or size != nbytes:
            buffer = self._device.allocate(nbytes)
            self._of_call[name] = nbytes, buffer
        return buffer

    def _read(self, name: str) -> NDArray[Any]:
        array = np.empty(self._shapes[name], dtype=self.spec.dtype)
        self._buffers[name].read(array)
        return array

    def _nbytes(self, name: str) -> int:
        return math.prod(self._shapes[name]) * self.spec.dtype.itemsize
