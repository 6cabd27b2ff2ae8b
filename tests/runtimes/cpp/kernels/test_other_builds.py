"""The tests beside this file over other builds of libl4cpu: with AMX in plain C++, and that with sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cpu_kernel_library import BUILD, instruction_sets

from native_library import run

TESTS = [str(Path(__file__).parent / f"test_{name}.py") for name in ("linear", "moe", "gated_unit", "operators")]

pytestmark = pytest.mark.skipif(BUILD in os.environ, reason="this is another build")


def run_tests(build: str, *options: str, **variables: str) -> str:
    """What pytest says of the tests; AssertionError if one fails, or none ran."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", *options, *TESTS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), BUILD: build, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_amx_without_the_processor() -> None:
    if "amx-int8" in instruction_sets():
        pytest.skip("this processor has AMX, and the other tests use it")
    said = run_tests("kernels-emulated-tiles", "-k", "amx or any_cut", "-vv")
    assert "amx-int8] PASSED" in said and "SKIPPED" not in said


@pytest.mark.sanitized
def test_with_sanitizers() -> None:
    """libstdc++ is loaded early for the sanitizer to find how exceptions are thrown; Python itself leaks."""
    early = [run("g++", f"-print-file-name=lib{name}.so").strip() for name in ("asan", "stdc++")]
    run_tests("kernels-sanitized", LD_PRELOAD=" ".join(early), ASAN_OPTIONS="detect_leaks=0")
