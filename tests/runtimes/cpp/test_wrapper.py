"""Programs that use the library as its users do: in C++17 and C++20 with the wrapper, and in C."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.runtimes.sampling.settings import Sampling
from native_library import SOURCE, build_native
from native_session import ONNXRUNTIME
from workshop import ROOT

PROGRAMS = Path(__file__).parent / "programs"
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wrapper") / "kjv"
    build(ROOT / "examples/kjv/model", path, BuildOptions(max_context=128))
    return path


def output(compiler: str, standard: str, source: str, engine: Path, work: Path) -> list[str]:
    """What a program prints that is compiled without a warning and linked to the library."""
    library, program = build_native(), work / "program"
    linked = ("-L", library, "-ll4export", f"-Wl,-rpath,{library}")
    command = [
        compiler,
        f"-std={standard}",
        *STRICT,
        "-I",
        SOURCE / "include",
        PROGRAMS / source,
        *linked,
        "-o",
        program,
    ]
    subprocess.run(command, check=True)
    done = subprocess.run([program, engine, ONNXRUNTIME], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("standard", ["c++17", "c++20"])
def test_the_wrapper(engine: Path, tmp_path: Path, standard: str) -> None:
    ids, text, decoded, first, second, status = output("g++", standard, "wrapper.cpp", engine, tmp_path)
    python = runtimes.load(engine, threads=1)
    assert python.text is not None
    prompt = python.text.encode("In the beginning")
    greedy = list(python.generate(prompt, 12))
    assert [int(token) for token in ids.split()] == greedy
    assert text == decoded == python.text.decode(greedy)
    steps = list(python.generate_batch([prompt, prompt], 12, Sampling(1.0, seed=7)))
    assert [[int(token) for token in row.split()] for row in (first, second)] == [
        list(row) for row in zip(*steps, strict=True)
    ]
    assert status == "2"


def test_a_program_in_c(engine: Path, tmp_path: Path) -> None:
    (ids,) = output("gcc", "c11", "plain.c", engine, tmp_path)
    assert [int(token) for token in ids.split()] == list(runtimes.load(engine, threads=1).generate([1, 2, 3], 12))
