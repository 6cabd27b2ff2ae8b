"""NVIDIA's driver: whether it is installed, and whether it finds a GPU."""

from __future__ import annotations

import ctypes

from l4export.errors import EnvironmentLacks

__all__ = ["open_driver"]

_LIBRARY = "libcuda.so.1"


def open_driver(purpose: str, remedy: str) -> ctypes.CDLL:
    """The driver's library, initialised. Everything that uses a GPU calls this first: TensorRT may crash without one.

    `purpose` begins the message of what is missing, such as "--target tensorrt compiles for the GPU of this machine";
    `remedy` ends it.

    Raises:
        EnvironmentLacks: no driver, or no GPU.
    """
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise EnvironmentLacks(
            f"{purpose}, and there is no NVIDIA driver ({_LIBRARY}): install it, or {remedy}"
        ) from error
    if code := driver.cuInit(0):
        raise EnvironmentLacks(f"{purpose}, and the NVIDIA driver finds no GPU (CUDA error {code}): {remedy}")
    return driver
