"""Pieces of one product, or of one mixture of experts, write to places of their own; threads change no bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from native_library import SOURCE, run

KERNELS = SOURCE / "kernels"


@pytest.mark.sanitized
def test_several_threads_with_the_thread_sanitizer(tmp_path: Path) -> None:
    sources = [KERNELS / f"{name}.cpp" for name in ("gated", "linear", "moe", "routing", "isa/scalar")]
    flags = ["-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fsanitize=thread", "-pthread", f"-I{KERNELS}"]
    run("g++", *flags, *sources, SOURCE / "tests/kernels/threads.cpp", "-o", tmp_path / "threads")
    assert run(tmp_path / "threads") == "equal\n"
