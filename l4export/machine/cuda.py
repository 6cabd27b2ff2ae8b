"""GPU memory and a stream, through NVIDIA's driver API.

The driver (`libcuda.so.1`) is there wherever a GPU works and its interface does not change, so that nothing has to be
installed for it: https://docs.nvidia.com/cuda/cuda-driver-api.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from l4export.machine.cuda_driver import open_driver

__all__ = ["ONE_AT_A_TIME", "Cuda", "CudaBuffer"]

ONE_AT_A_TIME = threading.RLock()
"""Held during each call of the driver, and by whoever records a CUDA graph. While one thread records, a call of another
that allocates or copies would be refused by CUDA, and the recording with it."""

_OUT_OF_MEMORY = 2
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_MODULE = Path("/sys/module/nvidia/version")
"""The kernel module's version, such as 580.65.06."""


class Cuda:
    """The first GPU, in the context that CUDA's runtime, and so ONNX Runtime and TensorRT, use too.

    Attributes:
        name: Of the GPU.
        capability: Its compute capability, such as (8, 9).
        driver: The newest version of CUDA that the driver supports, such as (13, 0).
        stream: Handle of the stream on which TensorRT executes. It waits for copies, and they for it.

    Raises:
        EnvironmentLacks: no driver, or no GPU; `purpose` and `remedy` as `l4export.machine.cuda_driver.open_driver`.
    """

    def __init__(self, purpose: str, remedy: str) -> None:
        self._driver = open_driver(purpose, remedy)
        device, self._context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(0))
        self.stream = int(stream.value or 0)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
        self.name = name.value.decode(errors="replace")
        self.capability = (
            self._attribute(_CAPABILITY_MAJOR, device),
            self._attribute(_CAPABILITY_MINOR, device),
        )
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self.driver = version.value // 1000, version.value % 1000 // 10

    @property
    def installation(self) -> dict[str, str]:
        """What of GPU and driver can decide a number: the card, its capability, the driver's versions."""
        module = ""
        with contextlib.suppress(OSError):  # hidden in some containers
            module = _MODULE.read_text(encoding="ascii", errors="replace").strip()
        capability, driver = (".".join(map(str, version)) for version in (self.capability, self.driver))
        return {"card": self.name, "capability": capability, "driver": f"CUDA {driver} {module}".strip()}

    def memory(self) -> tuple[int, int]:
        """Free bytes and all bytes of the GPU, whoever takes them."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._here("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, nbytes: int) -> CudaBuffer:
        """Zeros. Raises MemoryError when there is no room."""
        address, size = ctypes.c_uint64(), ctypes.c_size_t(nbytes)
        self._here("cuMemAlloc_v2", ctypes.byref(address), size)
        buffer = CudaBuffer(self, address.value, nbytes)
        self._here("cuMemsetD8_v2", address, ctypes.c_ubyte(0), size)
        self._settle()
        return buffer

    def free(self, address: int) -> None:
        """Free what `allocate` gave. A failure is ignored: the GPU is lost, and the call that used it has failed."""
        with contextlib.suppress(RuntimeError):
            self._here("cuMemFree_v2", ctypes.c_uint64(address))

    def to_device(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to `address`; it is there when this returns, for every stream."""
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._here("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, size)
        self._settle()

    def to_host(self, array: NDArray[Any], address: int) -> None:
        """Fill a contiguous array from `address`."""
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._here("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), size)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy between two addresses of the GPU's memory, and wait until it is done."""
        self._here("cuMemcpyDtoD_v2", ctypes.c_uint64(target), ctypes.c_uint64(source), ctypes.c_size_t(nbytes))
        self._settle()

    def synchronize(self) -> None:
        """Wait until everything on the stream is done. Raises RuntimeError when something of it failed."""
        self._here("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def _settle(self) -> None:
        """Wait for copies: from pageable memory they may return early, and ONNX Runtime's stream waits for none."""
        self._here("cuStreamSynchronize", ctypes.c_void_p(None))

    def _attribute(self, attribute: int, device: ctypes.c_int) -> int:
        number = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(number), ctypes.c_int(attribute), device)
        return number.value

    def _here(self, function: str, *arguments: Any) -> None:
        """A call in the context, whichever thread it comes from."""
        with ONE_AT_A_TIME:
            self._call("cuCtxSetCurrent", self._context)
            self._call(function, *arguments)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise MemoryError(f"{function}: the GPU has no memory left")
        if code:
            raise RuntimeError(f"{function}: CUDA error {code}")


class CudaBuffer:
    """GPU memory, freed with this object."""

    def __init__(self, cuda: Cuda, address: int, nbytes: int) -> None:
        self._cuda = cuda
        self.address = address
        self.nbytes = nbytes
        weakref.finalize(self, cuda.free, address)

    def write(self, array: NDArray[Any], at: int = 0) -> None:
        """As `l4export.runtimes.cache.device.Buffer`."""
        assert 0 <= at <= self.nbytes - array.nbytes and array.flags.c_contiguous
        self._cuda.to_device(self.address + at, array)

    def read(self, array: NDArray[Any], at: int = 0) -> None:
        """As `l4export.runtimes.cache.device.Buffer`."""
        assert 0 <= at <= self.nbytes - array.nbytes and array.flags.c_contiguous
        self._cuda.to_host(array, self.address + at)

    def copy(self) -> CudaBuffer:
        """As `l4export.runtimes.cache.device.Buffer`."""
        other = self._cuda.allocate(self.nbytes)
        other.take(self)
        return other

    def take(self, other: CudaBuffer) -> None:
        """As `l4export.runtimes.cache.device.Buffer`."""
        assert other.nbytes == self.nbytes
        self._cuda.copy(self.address, other.address, self.nbytes)
