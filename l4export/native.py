"""The native libraries: where pip has put them, and what compilers and linkers need to be told.

They come with the distribution `l4export-native`, which is built from `runtimes/cpp`: `libl4export` runs engines, and
`libl4cpu` has the operators of engines for `--target cpu`.
"""

from __future__ import annotations

import importlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from l4export.errors import EnvironmentLacks

__all__ = ["NativeFiles", "kernel_library", "native_files"]

_INSTALL = "with a C++ compiler, `pip install ./runtimes/cpp` in a checkout of l4export makes and installs it"

_KERNELS = "L4EXPORT_CPU_KERNELS"
"""The environment variable that names the library of kernels."""

_LACKING = "the engine needs l4export's CPU kernels"
_GET_KERNELS = f"{_INSTALL}; or build the engine for --target ort-cpu, which needs none"

_MACHINES = {62: "x86_64", 183: "aarch64"}
"""Processors by their numbers in ELF files, as `platform.machine` calls them."""


@dataclass(frozen=True)
class NativeFiles:
    """The installed native library.

    Attributes:
        path: The directory of it all; `find_package(l4export)` takes it as CMAKE_PREFIX_PATH.
        include: The directory of l4export.h and l4export.hpp.
        library: libl4export.so.
        kernels: libl4cpu.so, the operators of engines for the target `cpu`.
        l4run: The program. Of two with this name, the one on the PATH starts it with the ONNX Runtime beside it.
        onnxruntime: The library of the package onnxruntime, for L4EXPORT_ONNXRUNTIME; None if that is not installed.
    """

    path: Path
    include: Path
    library: Path
    kernels: Path
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
    paths = (package.PREFIX, package.INCLUDE, package.LIBRARY, package.KERNELS, package.L4RUN)
    return NativeFiles(*paths, package.onnxruntime_library())


def kernel_library() -> Path:
    """libl4cpu.so: what the variable L4EXPORT_CPU_KERNELS names, else that of the package `l4export_native`.

    Raises:
        EnvironmentLacks: there is none, or it is for another processor.
    """
    if given := os.environ.get(_KERNELS):
        path, cure = Path(given), f"{_KERNELS} must name libl4cpu.so"
    else:
        try:
            path = Path(importlib.import_module("l4export_native").KERNELS)
        except (ImportError, AttributeError):
            raise EnvironmentLacks(f"{_LACKING}: they are not installed; {_GET_KERNELS}") from None
        cure = _GET_KERNELS
    try:
        with open(path, "rb") as file:
            header = file.read(20)
    except OSError as error:
        raise EnvironmentLacks(f"{_LACKING}: {path} cannot be read ({error.strerror}); {cure}") from None
    number = int.from_bytes(header[18:20], "little")
    if header[:4] != b"\x7fELF" or len(header) < 20:
        raise EnvironmentLacks(f"{_LACKING}: {path} is no library; {cure}")
    if (machine := _MACHINES.get(number, f"processor {number}")) != platform.machine():
        raise EnvironmentLacks(f"{_LACKING}: {path} is for {machine}, and this is {platform.machine()}; {cure}")
    return path
