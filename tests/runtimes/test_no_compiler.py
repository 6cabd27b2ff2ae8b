"""A runtime needs no compiler: neither its import nor an engine that is opened and run loads one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workshop import Workshop

COMPILER = (
    *("onnx", "onnx_ir", "numba", "click", "rich"),
    *(f"l4export.{name}" for name in ("compiler", "calibration", "cli", "graph", "passes", "quantization", "targets")),
    *(f"l4export.{name}" for name in ("checkpoint", "inspection", "reference", "weights")),
)


def loaded_by(program: str) -> set[str]:
    """What of `COMPILER` a process of its own has loaded in the end."""
    report = f"import sys\nprint(*(name for name in {COMPILER!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["", ".engine", ".onnxruntime.engine", ".tensorrt", ".tensorrt.engine", ".images.processor"]
)
def test_importing_a_runtime(module: str) -> None:
    assert loaded_by(f"import l4export.runtimes{module}") == set()


def test_running_an_engine(workshop: Workshop) -> None:
    engine = str(workshop.engine_path("scout", "chunked"))
    program = f"import l4export.runtimes\nlist(l4export.runtimes.load({engine!r}, threads=1).generate([1, 2, 3], 2))"
    assert loaded_by(program) == set()


def test_comparing_operators_takes_no_more_than_the_graphs_format(workshop: Workshop) -> None:
    """What is read before CUDA is trusted: protocol buffers alone."""
    graph = str(workshop.engine_path("scout", "chunked") / "decoder.onnx")
    program = f"""from pathlib import Path
from l4export.runtimes.onnxruntime.operator_check import check_operators
compared = []
def open_graph(graph, folder, provider):
    compared.append(graph)
    raise InterruptedError
try:
    check_operators(Path({graph!r}), "CUDAExecutionProvider", open_graph)
except InterruptedError:
    assert compared"""
    assert loaded_by(program) == {"onnx"}
