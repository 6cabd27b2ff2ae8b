"""libl4export, its headers, l4run and the CPU kernels, as they were installed by pip. `l4export native` shows where.

A wheel that was built where there was no C++ compiler has none of them; then `LIBRARY` does not exist.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import NoReturn

__all__ = ["INCLUDE", "KERNELS", "L4RUN", "LIBRARY", "PREFIX", "onnxruntime_library", "run_l4run"]

PREFIX = Path(__file__).parent
"""What `find_package(l4export)` takes as CMAKE_PREFIX_PATH."""

INCLUDE = PREFIX / "include"
"""The directory of l4export.h and l4export.hpp."""

LIBRARY = PREFIX / "lib" / "libl4export.so"
KERNELS = PREFIX / "lib" / "libl4cpu.so"
L4RUN = PREFIX / "bin" / "l4run"


def onnxruntime_library() -> Path | None:
    """The library of the package onnxruntime (or onnxruntime-gpu) of this environment; None without one."""
    package = importlib.util.find_spec("onnxruntime")
    if package is None or package.origin is None:
        return None
    return next(iter(sorted(Path(package.origin).parent.glob("capi/libonnxruntime.so.*"))), None)


def run_l4run() -> NoReturn:
    """Become l4run, with the ONNX Runtime of this environment unless L4EXPORT_ONNXRUNTIME names another one."""
    if not L4RUN.exists():
        sys.exit("l4run: this wheel was built where there was no C++ compiler; install one and build it again")
    library = onnxruntime_library()
    if library is not None:
        os.environ.setdefault("L4EXPORT_ONNXRUNTIME", str(library))
    try:
        os.execv(L4RUN, sys.argv)
    except OSError as error:  # a wheel of another machine, or an installer that leaves out what may be executed
        sys.exit(f"l4run: {L4RUN} cannot be executed ({error.strerror}); install the wheel again with pip")
