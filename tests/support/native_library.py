"""The native library as the tests use it: built once, from the working tree, and called through its C ABI."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "runtimes/cpp"
HEADERS = ROOT / "build/onnxruntime-headers"
ONNXRUNTIME = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
"""The library in Python's package, which both runtimes then use."""

STRICT = "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"
TOGETHER = ("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=10")
"""Several files a compiler's run: a third of the time. Released wheels are built file by file, where a missing include
shows."""


def onnxruntime_headers() -> Path:
    """The directory of onnxruntime_c_api.h; unpacked once, or the one that the environment names."""
    if given := os.environ.get("ONNXRUNTIME_INCLUDE_DIR"):
        return Path(given)
    with _one_at_a_time():
        run(SOURCE / "onnxruntime_headers.sh", HEADERS)
    return HEADERS / "usr/include/onnxruntime"


@functools.cache
def build_native(name: str = "native", *options: str, target: str = "all") -> Path:
    """Configure runtimes/cpp in build/`name` and build it, or one target; the directory. Several processes may ask at
    once."""
    directory, headers = ROOT / "build" / name, onnxruntime_headers()
    with _one_at_a_time():
        where = f"-DONNXRUNTIME_INCLUDE_DIR={headers}"
        run("cmake", "-S", SOURCE, "-B", directory, "-G", "Ninja", where, STRICT, *TOGETHER, *options)
        run("cmake", "--build", directory, "--target", target)
    return directory


def sanitized_native() -> Path:
    """The build with address and undefined sanitizers: conformance runner, fuzz targets and l4run."""
    quickly = "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -g1"  # built, and with lines in what sanitizers say
    return build_native("native-sanitized", quickly, "-DL4EXPORT_TESTS=ON", "-DL4EXPORT_SANITIZE=address,undefined")


def native_site(directory: Path) -> dict[str, str]:
    """Install the package l4export-native into `directory` as its wheel would be, with `l4export` and `l4run` in bin/.

    Returns the variables of an environment that finds all of it.
    """
    package, programs = directory / "l4export_native", directory / "bin"
    shutil.copytree(SOURCE / "python/l4export_native", package)
    run("cmake", "--install", build_native(), "--prefix", package)
    programs.mkdir()
    for name, code in (("l4export", "l4export.cli.main()"), ("l4run", "l4export_native.run_l4run()")):
        program = programs / name
        program.write_text(f"#!{sys.executable}\nimport l4export.cli, l4export_native\n{code}\n")
        program.chmod(0o755)
    python_path = os.pathsep.join([str(directory), *filter(None, sys.path)])
    return {"PYTHONPATH": python_path, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """What a command prints; cmake and ninja are those of this environment. AssertionError if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """A lock of all processes that run tests."""
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build/native.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def native_library() -> ctypes.CDLL:
    """libl4export, loaded."""
    library = ctypes.CDLL(str(build_native() / "libl4export.so"))
    library.l4_last_error.restype = ctypes.c_char_p
    library.l4_version.restype = ctypes.c_char_p
    return library


class NativeError(Exception):
    """A call of the C ABI that failed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check(status: int) -> None:
    """Raise `NativeError` unless a call has succeeded."""
    if status:
        raise NativeError(status, native_library().l4_last_error().decode())
