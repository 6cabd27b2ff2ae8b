"""The native library as the tests use it: built once, from the working tree, and called through its C ABI."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "runtimes/cpp"
HEADERS = ROOT / "build/onnxruntime-headers"


def build_native(name: str = "native", *options: str) -> Path:
    """Configure and build runtimes/cpp in build/`name`; the directory. Several processes may ask at once."""
    directory = ROOT / "build" / name
    directory.mkdir(parents=True, exist_ok=True)
    with open(ROOT / "build/native.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([SOURCE / "onnxruntime_headers.sh", HEADERS], check=True)
        tools = Path(sys.executable).parent
        environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        where = f"-DONNXRUNTIME_INCLUDE_DIR={HEADERS}/usr/include/onnxruntime"
        configure = ["cmake", "-S", SOURCE, "-B", directory, "-G", "Ninja", where, *options]
        for command in (configure, ["cmake", "--build", directory]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise AssertionError(f"{command}: {done.stdout[-4000:]}{done.stderr[-4000:]}")
    return directory


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
