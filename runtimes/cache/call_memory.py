"""Where the inputs and outputs of a decoder call lie that are no caches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.runtimes.cache.binding_plan import Tensor
from l4export.runtimes.cache.device import Buffer, Device

__all__ = ["CallMemory"]


@dataclass
class _Place:
    """Memory of one tensor: `buffer` on the device, or `array` alone on the host; of an input, what `array` holds."""

    array: NDArray[Any]
    buffer: Buffer | None
    is_sent: bool = False

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data) if self.buffer is None else self.buffer.address


class CallMemory:
    """One place a tensor, which stays where it is from call to call for as long as the tensor's shape does.

    So calls of one shape, as those of decoding are, find the same addresses, and an input that is as it was is not sent
    again.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._places: dict[str, _Place] = {}

    def address(self, tensor: Tensor, shape: tuple[int, ...]) -> int:
        """Where a tensor of that shape lies, in the host's memory if `tensor.on_host`. Raises MemoryError."""
        place = self._places.get(tensor.name)
        if place is None or place.array.shape != shape:
            self._places.pop(tensor.name, None)  # freed before the next is allocated
            nbytes = max(1, math.prod(shape) * tensor.dtype.itemsize)  # `image_features` of a text has no rows
            buffer = None if tensor.on_host else self._device.allocate(nbytes)
            place = self._places[tensor.name] = _Place(np.empty(shape, tensor.dtype), buffer)
        return place.address

    def send(self, tensor: Tensor, value: NDArray[Any]) -> None:
        """Put the value of an input where `address` says."""
        place = self._places[tensor.name]
        assert place.array.shape == value.shape and place.array.dtype == value.dtype
        if not value.size or (place.is_sent and np.array_equal(place.array, value)):
            return
        place.is_sent = False
        place.array[...] = value
        if place.buffer is not None:
            place.buffer.write(place.array)
        place.is_sent = True

    def fetch(self, tensor: Tensor) -> NDArray[Any]:
        """A copy of an output, on the host."""
        place = self._places[tensor.name]
        if place.buffer is None:
            return place.array.copy()
        array = np.empty_like(place.array)
        place.buffer.read(array)
        return array
