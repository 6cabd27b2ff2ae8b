"""A KV cache in the memory of a device, and the decoder calls on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.manifest import Manifest
from l4export.runtimes.binding_plan import BindingPlan
from l4export.runtimes.device import Binding, Buffer, Device
from l4export.runtimes.kv_cache import Arrays, Call, KVCache

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
        self._bindings: dict[tuple[int | None, int], Binding] = {}
        self._of_call: dict[str, tuple[int, Buffer]] = {}

    @property
    def nbytes(self) -> int:
        """Of the buffers."""
        return sum(map(self._nbytes, self.spec.names))

    def run(self, call: Call) -> NDArray[np.float32]:
        """Bind what is the call's own, execute, fetch the logits."""
        rows, tokens = call.ids.shape
        sizes = self._plan.sizes(rows, tokens, call.last_only, self.capacity)
        binding = self._binding(call.row, self._plan.profile(tokens))
        arrays: dict[str, NDArray[Any]] = {**call.inputs()}
        for tensor in self._plan.of_call:
            shape = tensor.shape_in(sizes)
            if tensor.is_output:
                arrays[tensor.name] = np.empty(shape, dtype=tensor.dtype)
            array = arrays[tensor.name]
            assert array.shape == shape and array.dtype == tensor.dtype
            if tensor.on_host:
                binding.bind(tensor, shape, array.ctypes.data)
                continue
            buffer = self._buffer_of_call(tensor.name, array.nbytes)
            if not tensor.is_output:
                buffer.write(array)
            binding.bind(tensor, shape, buffer.address)
        binding.run()
        for tensor in self._plan.of_call:
            if tensor.is_output and not tensor.on_host:
                self._of_call[tensor.name][1].read(arrays[tensor.name])
        return arrays["logits"]

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
        """Put the copies back; in the other caches nothing is read behind a row's length."""
        for name, array in mark.items():
            self._buffers[name].write(array)

    def reset(self) -> None:
        """Nothing to clear: no slot is read before it is written."""

    def tokens(self, row: int, count: int, local_count: int) -> Arrays:
        """Fetched from the device."""
        named = zip(self.spec.names, self.spec.local, strict=True)
        return [self._read(name)[row, :, : local_count if local else count] for name, local in named]

    def _binding(self, row: int | None, profile: int) -> Binding:
        """The caches of a row, or of all of them, bound once for each profile."""
        if (row, profile) not in self._bindings:
            binding = self._device.binding(profile)
            for tensor in self._plan.of_caches:
                assert tensor.cache is not None
                shape, address = self._shapes[tensor.cache], self._buffers[tensor.cache].address
                if row is not None:
                    shape, address = (1, *shape[1:]), address + row * self._nbytes(tensor.cache) // self.batch
                binding.bind(tensor, shape, address)
            self._bindings[row, profile] = binding
        return self._bindings[row, profile]

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
