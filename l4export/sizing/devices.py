"""Devices that `l4export plan` knows by name."""

from __future__ import annotations

from dataclasses import dataclass

from l4export.errors import InputError

__all__ = ["DEVICES", "Device", "device_memory", "device_target"]


@dataclass(frozen=True)
class Device:
    """A device and its memory in bytes.

    The figure is the data sheet's, taken as decimal gigabytes. The memory has that many binary gigabytes, which is 7 %
    more; the difference is left to the driver and the operating system. `target` is that of the engines planned for it.
    """

    title: str
    memory: int
    target: str = "ort-cpu"


DEVICES = {
    "h100": Device("NVIDIA H100, 80 GB", 80 * 10**9, "ort-cuda"),
    "h200": Device("NVIDIA H200, 141 GB", 141 * 10**9, "ort-cuda"),
    "thor": Device("NVIDIA Jetson Thor, 128 GB shared by CPU and GPU", 128 * 10**9),
    "spark": Device("NVIDIA DGX Spark, 128 GB shared by CPU and GPU", 128 * 10**9),
    "server64": Device("a server with 64 GB", 64 * 10**9),
}


def device_memory(device: str | int) -> int:
    """Return the memory in bytes of a device, given by its name in `DEVICES` or by its memory in bytes.

    Raises:
        InputError: the name is unknown; the memory is less than one byte.
    """
    if isinstance(device, str):
        if device not in DEVICES:
            raise InputError(f"device {device!r} is not one of {', '.join(DEVICES)}; or give its memory in bytes")
        return DEVICES[device].memory
    if device < 1:
        raise InputError(f"a device of {device} bytes: a device has at least one byte of memory")
    return device


def device_target(device: str | int) -> str:
    """Return the target of the engines planned for a device: `ort-cpu` for one that has no name."""
    return DEVICES[device].target if isinstance(device, str) else "ort-cpu"
