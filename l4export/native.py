"""The native library: where pip has put it, and what compilers and linkers need to be told.

It comes with the distribution `l4export-native`, which is built from `runtimes/cpp`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from l4export.errors import EnvironmentLacks

__all__ = ["NativeFiles", "native_files"]

_INSTALL = "with a C++ compiler, `pip install ./runtimes/cpp` in a checkout of l4export makes and installs it"


@dataclass(frozen=True)
class NativeFiles:
    """The installed native library.

    Attributes:
        path: The directory of it all; `find_package(l4export)` takes it as CMAKE_PREFIX_PATH.
        include: The directory of l4export.h and l4export.hpp.
        library: libl4export.so.
        l4run: The program. Of two with this name, the one on the PATH starts it with the ONNX Runtime beside it.
        onnxruntime: The library of the package onnxruntime, for L4EXPORT_ONNXRUNTIME; None if that is not installed.
    """

    path: Path
    include: Path
    library: Path
    l4run: Path
    onnxruntime: Path | None

    @property
    def cflags(self) -> tuple[str, ...]:
        """Arguments of a compiler."""
        return (f"-I{self.include}",)

    @property
    def libs(self) -> tuple[str, ...]:
        """Arguments of a linker; the program finds the library where it is now."""
        return (f"-L{self.library.parent}", f"-Wl,-rpath,{self.library.parent}", "-ll4export")


def native_files() -> NativeFiles:
    """Find the library that the package `l4export_native` of this environment has.

    Raises:
        EnvironmentLacks: the package is not installed, or was built where there was no C++ compiler.
    """
    try:
        package = importlib.import_module("l4export_native")
    except ImportError:
        raise EnvironmentLacks(f"the native library is not installed; {_INSTALL}") from None
    if not package.LIBRARY.exists():
        lacking = f"{package.PREFIX} has no library, as it was built without a C++ compiler"
        raise EnvironmentLacks(f"{lacking}; {_INSTALL}")
    return NativeFiles(package.PREFIX, package.INCLUDE, package.LIBRARY, package.L4RUN, package.onnxruntime_library())
