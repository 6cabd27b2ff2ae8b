"""A runtime needs no compiler: neither its import nor an engine that is opened and run loads one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from judged_engines import judged_engine
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


def test_judging_a_provider(workshop: Workshop, tmp_path: Path) -> None:
    """By the check graph of an engine, before CUDA is trusted."""
    path = judged_engine(workshop.checkpoint("guard"), tmp_path / "e")
    program = f"""from pathlib import Path
from l4export.engine.manifest import load_manifest
from l4export.runtimes.cache.device_cache import DeviceCache
from l4export.runtimes.onnxruntime.composition_check import Executor, check_composition
from l4export.runtimes.onnxruntime.device import OnnxRuntimeDevice
from l4export.runtimes.onnxruntime.engine import open_session, session_options
from l4export.runtimes.onnxruntime.execution import cuda_plan

class OnCpu:
    def __init__(self, graph, profile):
        self.inference = open_session(path / graph.file, session_options(1, profile=profile))

    def new_cache(self, manifest, batch, capacity):
        device = OnnxRuntimeDevice([self.inference], "cpu")
        return DeviceCache(device, cuda_plan(manifest), manifest, batch, capacity)

path = Path({str(path)!r})
check_composition(path, load_manifest(path), Executor("CPUExecutionProvider", OnCpu))"""
    assert loaded_by(program) == set()
