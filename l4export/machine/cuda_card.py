"""Which card the CUDA driver computes on first, and which driver it is."""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from pathlib import Path

from l4export.errors import EnvironmentLacks

__all__ = ["Card", "first_card"]

_MAJOR, _MINOR = 75, 76
"""`CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR` [cuda.h]."""
_MODULE = Path("/sys/module/nvidia/version")
"""The kernel module's version, such as 580.65.06."""


@dataclass(frozen=True)
class Card:
    """A card's name, its compute capability such as "9.0", and its driver's versions: of CUDA, and of the module."""

    name: str
    capability: str
    driver: str


def first_card(driver: ctypes.CDLL) -> Card:
    """Device 0 of an initialised driver (`open_driver`), which is the first that CUDA_VISIBLE_DEVICES leaves.

    Raises:
        EnvironmentLacks: the driver does not say.
    """
    device, name, numbers = ctypes.c_int(), ctypes.create_string_buffer(256), [ctypes.c_int() for _ in range(3)]
    major, minor, cuda = numbers
    failed = (
        driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        or driver.cuDriverGetVersion(ctypes.byref(cuda))
    )
    if failed:
        raise EnvironmentLacks(f"the NVIDIA driver does not tell which GPU there is (CUDA error {failed}); restart it")
    module = ""
    with contextlib.suppress(OSError):  # hidden in some containers
        module = _MODULE.read_text(encoding="ascii", errors="replace").strip()
    version = f"CUDA {cuda.value // 1000}.{cuda.value % 1000 // 10}"
    return Card(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", f"{version} {module}".strip())
