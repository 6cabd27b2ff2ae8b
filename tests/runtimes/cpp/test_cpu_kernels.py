"""Engines on l4export's own CPU kernels in the native runtime: the numbers of the Python runtime, and its refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from other_libraries import other_libraries
from session_twins import Twins, conversation

from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.quantization.policy import standard_policy
from native_library import ONNXRUNTIME, NativeError, build_native, run
from native_session import NativeEngine
from workshop import ROOT, Workshop

ENVIRONMENT = 3


@pytest.fixture(scope="module")
def engine(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cpu") / "engine"
    policy = standard_policy("int4")
    options = BuildOptions(target="cpu", kv_layout="chunked", max_context=256, policy=policy)
    build(workshop.checkpoint("scout-top2"), path, options)
    return path


@pytest.mark.usefixtures("cpu_kernels")
def test_both_runtimes_compute_the_same_bits(engine: Path) -> None:
    conversation(Twins.of(engine, rows=2))


def test_what_is_no_library_for_this_machine(
    engine: Path, cpu_kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, why in other_libraries(cpu_kernels, tmp_path).items():
        monkeypatch.setenv("L4EXPORT_CPU_KERNELS", str(path))
        with pytest.raises(NativeError, match=f"needs l4export's CPU kernels: .*{why}.*L4EXPORT_CPU_KERNELS") as caught:
            NativeEngine(engine)
        assert caught.value.status == ENVIRONMENT
    monkeypatch.setenv("L4EXPORT_CPU_KERNELS", str(build_native() / "libl4export.so"))
    with pytest.raises(NativeError, match="has no operators for ONNX Runtime"):
        NativeEngine(engine)


def test_the_program_finds_the_library_where_both_are_installed(tmp_path: Path) -> None:
    build(
        ROOT / "examples/kjv/model",
        tmp_path / "kjv",
        BuildOptions(target="cpu", max_context=64, policy=standard_policy("int4")),
    )
    run("cmake", "--install", build_native(), "--prefix", tmp_path / "prefix")
    environment = {**os.environ, "L4EXPORT_ONNXRUNTIME": str(ONNXRUNTIME)}
    environment.pop("L4EXPORT_CPU_KERNELS", None)

    def say(program: Path, called: str = "l4run") -> subprocess.CompletedProcess[str]:
        command = [called, tmp_path / "kjv", "--prompt", "In the beginning", "--max-new-tokens", "4"]
        there = tmp_path / "kjv"
        return subprocess.run(
            command, executable=program, cwd=there, env=environment, capture_output=True, text=True, check=False
        )

    done = say(tmp_path / "prefix/bin/l4run")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout
    (tmp_path / "kjv/libl4cpu.so").write_text("no library")
    elsewhere = say(tmp_path / "prefix/bin/l4run", "./l4run")  # as a program that was started elsewhere
    assert (elsewhere.returncode, elsewhere.stdout) == (0, done.stdout), elsewhere.stderr
    alone = say(Path(shutil.copy(tmp_path / "prefix/bin/l4run", tmp_path)))
    assert alone.returncode == ENVIRONMENT and alone.stderr.count("\n") == 1
    assert "the engine needs l4export's CPU kernels: libl4cpu.so cannot be opened" in alone.stderr
