"""NVIDIA's driver, which comes with the GPU's own installation: whether it is there, and what it finds."""

from __future__ import annotations

import ctypes

from l4export.errors import EnvironmentLacks

__all__ = ["open_driver"]

_LIBRARY = "libcuda.so.1"


def open_driver(purpose: str, remedy: str) -> ctypes.CDLL:
    """The driver's library, initialised. Whatever uses a GPU asks here first: TensorRT may crash where there is none.

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
