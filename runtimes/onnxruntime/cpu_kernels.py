"""l4export's own CPU kernels, for sessions whose graph has their operators."""

from __future__ import annotations

from typing import Any

from l4export.errors import EnvironmentLacks, printable
from l4export.native import kernel_library

__all__ = ["add_cpu_kernels"]


def add_cpu_kernels(options: Any) -> None:
    """Give the operators of domain `l4.cpu` to a session with these `onnxruntime.SessionOptions`.

    Raises:
        EnvironmentLacks: the library is missing, for another processor, or not taken by this ONNX Runtime.
    """
    library = kernel_library()
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # pybind has several, by the version
        detail = printable(str(error))[:300]
        raise EnvironmentLacks(f"{library}: ONNX Runtime cannot load these kernels ({detail})") from error
