"""Engines for CUDA on a machine without it: the CPU provider in its place, right or changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import CheckGraph, Manifest, load_manifest
from l4export.graph.layer_excerpt import excerpt_layers
from l4export.inspection.graph_file import load_graph
from l4export.quantization.policy import standard_policy
from l4export.runtimes.cache.device_cache import DeviceCache
from l4export.runtimes.onnxruntime.composition_check import Executor
from l4export.runtimes.onnxruntime.device import OnnxRuntimeDevice
from l4export.runtimes.onnxruntime.engine import session_options
from l4export.runtimes.onnxruntime.execution import cuda_plan
from l4export.runtimes.onnxruntime.portable import unpacked

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

Change = Callable[[ir.Graph], None]
ExecutorOf = Callable[[Path], Executor]
"""What executes the graphs of an engine's directory."""


def judged_engine(checkpoint: Path, engine: Path, quant: str = "none", **changes: Any) -> Path:
    """Build an engine that carries a check graph; 96 tokens are six chunks of a tiny model."""
    fixed = {"target": "ort-cuda", "dtype": "fp16", "kv_layout": "chunked", "max_context": 96}
    build(checkpoint, engine, BuildOptions(**{**fixed, "policy": standard_policy(quant), **changes}))
    return engine


def cpu_form(path: Path, change: Change | None = None) -> bytes:
    """A graph of an engine as a CPU runs it, packed weights unpacked within it: `decoder.onnx` or `check.onnx`."""
    engine = path.parent
    manifest = load_manifest(engine)
    model = load_graph(engine, manifest)
    if manifest.check and path.name == manifest.check.file:
        model = excerpt_layers(model, manifest.check.layers)
    values = model.graph.initializers
    for weight in manifest.packed_weights:
        if weight.name in values:
            values[weight.name].const_value = ir.tensor(unpacked(engine, weight), name=weight.name)
    if change:
        change(model.graph)
    return bytes(ir.to_proto(model).SerializeToString())


class OnCpu:
    """The CPU provider behind the bindings of a device."""

    def __init__(self, inference: ort.InferenceSession) -> None:
        self.inference = inference

    def new_cache(self, manifest: Manifest, batch: int, capacity: int) -> DeviceCache:
        """A cache in the CPU provider's memory."""
        device = OnnxRuntimeDevice([self.inference], "cpu")
        return DeviceCache(device, cuda_plan(manifest), manifest, batch, capacity)


def computing(change: Change | None = None) -> ExecutorOf:
    """A provider that computes what the graph says, or what it says after a change."""

    def of(engine: Path) -> Executor:
        def opened(check: CheckGraph, profile: Path | None) -> OnCpu:
            options = session_options(threads=1, profile=profile)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(engine))
            return OnCpu(ort.InferenceSession(cpu_form(engine / check.file, change), options, providers=[CPU]))

        return Executor(CPU, opened)

    return of


def said_to_be_on_cuda(but: str) -> ExecutorOf:
    """A provider whose profile says that it executed every node, except those of one operator."""

    class Told(OnCpu):
        def __init__(self, inference: ort.InferenceSession) -> None:
            self._honest = inference
            super().__init__(self)  # type: ignore[arg-type]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._honest, name)

        def end_profiling(self) -> str:
            path = Path(self._honest.end_profiling())
            events = json.loads(path.read_text())
            for event in events:
                if event["cat"] == "Node" and event["args"].get("op_name") != but:
                    event["args"]["provider"] = CUDA
            path.write_text(json.dumps(events))
            return str(path)

    def of(engine: Path) -> Executor:
        honest = computing()(engine)
        return Executor(CUDA, lambda check, profile: Told(honest.open_graph(check, profile).inference))

    return of
