"""The Python runtime finds the library of CPU kernels, or says in one line what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from other_libraries import other_libraries

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import EnvironmentLacks
from l4export.native import kernel_library
from l4export.quantization.policy import standard_policy
from native_library import native_site
from workshop import Workshop, random_ids


@pytest.fixture(scope="module")
def engine(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cpu") / "engine"
    build(
        workshop.checkpoint("scout"), path, BuildOptions(target="cpu", max_context=64, policy=standard_policy("int4"))
    )
    return path


def test_the_variable_names_the_library(engine: Path, cpu_kernels: Path) -> None:
    assert kernel_library() == cpu_kernels
    assert runtimes.load(engine).session().append(random_ids(4)).shape == (1, 4, 256)


def test_what_is_no_library_for_this_machine(
    engine: Path, cpu_kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, why in other_libraries(cpu_kernels, tmp_path).items():
        monkeypatch.setenv("L4EXPORT_CPU_KERNELS", str(path))
        with pytest.raises(EnvironmentLacks, match=f"needs l4export's CPU kernels: .*{why}.*L4EXPORT_CPU_KERNELS"):
            runtimes.load(engine)


def test_a_library_without_the_operators(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L4EXPORT_CPU_KERNELS", sys.modules["_ctypes"].__file__ or "")
    with pytest.raises(EnvironmentLacks, match="ONNX Runtime cannot load these kernels"):
        runtimes.load(engine)


def test_it_comes_with_the_wheel(engine: Path, tmp_path: Path) -> None:
    code = f"from l4export import runtimes; print(runtimes.load({str(engine)!r}).session().append([1, 2, 3]).shape)"
    without = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("or build the engine for --target ort-cpu, which needs none")
    assert "they are not installed; with a C++ compiler, `pip install ./runtimes/cpp`" in done.stderr
    site = native_site(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**without, **site}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "(1, 3, 256)"), done.stderr


@pytest.mark.usefixtures("cpu_kernels")
def test_an_unknown_instruction_set_is_refused_by_name(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L4_CPU_ISA", "abacus")
    with pytest.raises(Exception, match="abacus"):
        runtimes.load(engine)
