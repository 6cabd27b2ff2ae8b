"""The native runtime gives what the Python runtime gives, for every case of the conformance set."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from cases import SAVED
from comparison import differences
from python_runtime import run_cases
from write_cases import write_cases

from engines import ALL, QUICK, EngineKind
from native_library import ONNXRUNTIME, build_native, sanitized_native

Prepared = Callable[[EngineKind], Path]

pytestmark = pytest.mark.usefixtures("cpu_kernels")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The directory of an engine's cases, with Python's results in `expected`; made once."""
    root = tmp_path_factory.mktemp("conformance")

    @cache
    def make(kind: EngineKind) -> Path:
        directory = write_cases(kind, root)
        run_cases(directory, directory / "expected", directory / "expected")
        return directory

    return make


@cache
def plain() -> Path:
    return build_native("native-tests", "-DL4EXPORT_TESTS=ON")


def native(build: Path, directory: Path, out: Path, saved: Path, *more: str, **variables: str) -> None:
    """Execute a directory's cases with the C ABI."""
    out.mkdir()
    environment = {**os.environ, "L4EXPORT_ONNXRUNTIME": str(ONNXRUNTIME), **variables}
    command = [build / "tests/conformance", directory, out, saved, *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-2000:]}{done.stderr[-6000:]}"


def check_equal(build: Path, directory: Path, tmp_path: Path, *more: str, **variables: str) -> None:
    """The native runtime conforms, and so does Python with the session that the native one has saved."""
    expected, found = directory / "expected", tmp_path / "found"
    native(build, directory, found, expected, *more, **variables)
    assert list(differences(directory, expected, found)) == []
    assert (found / SAVED).read_bytes() == (expected / SAVED).read_bytes()
    run_cases(directory, tmp_path / "python", found)
    assert list(differences(directory, expected, tmp_path / "python")) == []


@pytest.mark.sanitized
@pytest.mark.parametrize("kind", QUICK, ids=str)
def test_conformance_with_sanitizers(prepared: Prepared, tmp_path: Path, kind: EngineKind) -> None:
    suppressions = tmp_path / "leaks"
    suppressions.write_text("leak:libonnxruntime\n")
    options = {"ASAN_OPTIONS": "detect_leaks=1", "LSAN_OPTIONS": f"suppressions={suppressions}:print_suppressions=0"}
    check_equal(sanitized_native(), prepared(kind), tmp_path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL, ids=str)
def test_conformance_of_every_kind(prepared: Prepared, tmp_path: Path, kind: EngineKind) -> None:
    check_equal(plain(), prepared(kind), tmp_path)


OF_ONNXRUNTIME = """called_from_lib:libonnxruntime.so
called_from_lib:libl4cpu.so
race:libonnxruntime.so
mutex:std::condition_variable::wait
mutex:__run_exit_handlers
"""
"""ONNX Runtime is not built for the sanitizer, which sees half of what its threads do: it alone waits for conditions,
and its globals unlock a mutex when the program ends. The CPU kernels work in memory and threads that it hands to them;
`tests/runtimes/cpp/kernels/test_threads.py` has them with threads that the sanitizer sees."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUICK, ids=str)
def test_sessions_of_one_engine_in_threads(prepared: Prepared, tmp_path: Path, kind: EngineKind) -> None:
    suppressions = tmp_path / "races"
    suppressions.write_text(OF_ONNXRUNTIME)
    build = build_native("native-threads", "-DL4EXPORT_TESTS=ON", "-DL4EXPORT_SANITIZE=thread")
    directory, found = prepared(kind), tmp_path / "found"
    options = {"TSAN_OPTIONS": f"suppressions={suppressions}"}
    native(build, directory, found, directory / "expected", "at once", **options)
    assert list(differences(directory, directory / "expected", found)) == []
