"""The service in C++, built against an installed library as its page says."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from debian_packages import install
from example_pages import packages

from native_library import ONNXRUNTIME, STRICT, build_native, run
from workshop import ROOT

__all__ = ["compiled", "native_service"]

SOURCE = ROOT / "examples/cpp_service"


@functools.cache
def native_service() -> list[str]:
    """How its command line begins."""
    install(*packages("cpp_service"))
    prefix, directory = ROOT / "build/native-prefix", ROOT / "build/cpp-service"
    run("cmake", "--install", build_native(), "--prefix", prefix)
    run("cmake", "-S", SOURCE, "-B", directory, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", STRICT)
    run("cmake", "--build", directory)
    return ["env", f"L4EXPORT_ONNXRUNTIME={ONNXRUNTIME}", str(directory / "cpp_service")]


def compiled(program: str, sources: Sequence[str], directory: Path, *libraries: str) -> Path:
    """A program of tests/services with some of the service's sources, built into `directory` with sanitizers."""
    install(*packages("cpp_service"))
    made = directory / Path(program).stem
    files = [ROOT / "tests/services" / program, *(SOURCE / f"{name}.cpp" for name in sources)]
    sanitized = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")
    warnings = ("-Wall", "-Wextra", "-Werror")
    run("c++", "-std=c++17", "-O1", *warnings, *sanitized, f"-I{SOURCE}", *files, "-o", made, *libraries)
    return made
