"""What a runtime needs of a device whose memory is not this process's: buffers, and calls on bound addresses."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from l4export.runtimes.cache.binding_plan import Tensor

__all__ = ["Binding", "Buffer", "Device"]


class Buffer(Protocol):
    """Bytes on a device, zeros at first. They are freed when nobody holds the buffer any more."""

    @property
    def address(self) -> int:
        """Of the first byte, in the device's memory."""

    def write(self, array: NDArray[Any], at: int = 0) -> None:
        """Copy a contiguous array to the device, to the bytes from number `at` on."""

    def read(self, array: NDArray[Any], at: int = 0) -> None:
        """Fill a contiguous array with the bytes from number `at` on."""

    def copy(self) -> Buffer:
        """Another buffer of the same bytes. Raises MemoryError when there is no room for it."""

    def take(self, other: Any) -> None:
        """Copy the bytes of another buffer of this device, which has as many."""


class Binding(Protocol):
    """Addresses of the decoder's inputs and outputs, which stay from run to run until they are bound anew."""

    def bind(self, tensor: Tensor, shape: tuple[int, ...], address: int) -> None:
        """Where a tensor of that shape lies: in the host's memory if `tensor.on_host`, else in the device's."""

    def run(self) -> None:
        """Execute the part; returns when all outputs are written."""


class Device(Protocol):
    """One device with one loaded decoder, in one part or several that run one after the other.

    Attributes:
        records_steps: Whether it records what a `fixed` binding runs and repeats the recording.
    """

    records_steps: bool

    def allocate(self, nbytes: int) -> Buffer:
        """A buffer of zeros. Raises MemoryError when there is no room for it."""

    def binding(self, part: int, profile: int, fixed: bool = False) -> Binding:
        """A binding on which nothing is bound, for calls of that part in that optimisation profile.

        `fixed` promises that from the first run on everything stays: shapes, addresses, and what inputs on the host
        hold.
        """
