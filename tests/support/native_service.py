"""The service in C++, built against an installed library as its page says."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
from example_pages import packages
from native_library import ONNXRUNTIME, STRICT, build_native, run

from workshop import ROOT

__all__ = ["SOURCE", "native_service", "needs_its_packages"]

SOURCE = ROOT / "examples/cpp_service"
_HEADERS = ("httplib.h", "nlohmann/json.hpp", "png.h")


def needs_its_packages() -> None:
    """Skip a test where Debian's packages are missing."""
    have_headers = all((Path("/usr/include") / header).exists() for header in _HEADERS)
    if not have_headers or shutil.which("pkg-config") is None:
        pytest.skip(f"apt-get install {' '.join(packages('cpp_service'))}")


@functools.cache
def native_service() -> list[str]:
    """How its command line begins."""
    needs_its_packages()
    prefix, directory = ROOT / "build/native-prefix", ROOT / "build/cpp-service"
    run("cmake", "--install", build_native(), "--prefix", prefix)
    run("cmake", "-S", SOURCE, "-B", directory, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", STRICT)
    run("cmake", "--build", directory)
    return ["env", f"L4EXPORT_ONNXRUNTIME={ONNXRUNTIME}", str(directory / "cpp_service")]
