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
from l4export.engine.manifest import Manifest
from l4export.quantization.policy import standard_policy
from l4export.runtimes.cache.device_cache import DeviceCache
from l4export.runtimes.onnxruntime.composition_check import Executor
from l4export.runtimes.onnxruntime.device import OnnxRuntimeDevice
from l4export.runtimes.onnxruntime.engine import cuda_plan, session_options

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

Change = Callable[[ir.Graph], None]


def judged_engine(checkpoint: Path, engine: Path, quant: str = "none", **changes: Any) -> Path:
    """Build an engine that carries a check graph; 96 tokens are six chunks of a tiny model."""
    fixed = {"target": "ort-cuda", "dtype": "fp16", "kv_layout": "chunked", "max_context": 96}
    build(checkpoint, engine, BuildOptions(**{**fixed, "policy": standard_policy(quant), **changes}))
    return engine


def cpu_cache(inference: ort.InferenceSession, manifest: Manifest, batch: int, capacity: int) -> DeviceCache:
    """The cache of a device whose memory is the CPU provider's."""
    return DeviceCache(OnnxRuntimeDevice([inference], "cpu"), cuda_plan(manifest), manifest, batch, capacity)


def computing(change: Change | None = None) -> Executor:
    """A provider that computes what the graph says, or what it says after a change."""

    def opened(path: Path, profile: Path) -> ort.InferenceSession:
        model = ir.load(path)
        if change:
            change(model.graph)
        options = session_options(threads=1)
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=[CPU])

    return Executor(CPU, opened, cpu_cache)


def said_to_be_on_cuda(but: str) -> Executor:
    """A provider whose profile says that it executed every node, except those of one operator."""
    honest = computing()

    class Told:
        def __init__(self, inference: ort.InferenceSession) -> None:
            self.inference = inference

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inference, name)

        def end_profiling(self) -> str:
            path = Path(self.inference.end_profiling())
            events = json.loads(path.read_text())
            for event in events:
                if event["cat"] == "Node" and event["args"].get("op_name") != but:
                    event["args"]["provider"] = CUDA
            path.write_text(json.dumps(events))
            return str(path)

    return Executor(CUDA, lambda path, profile: Told(honest.open_session(path, profile)), cpu_cache)  # type: ignore[arg-type,return-value]


class Driver:
    """As much of NVIDIA's driver as an engine asks before it is judged."""

    def __init__(self, name: str = "Imagined 100", capability: tuple[int, int] = (9, 0), version: int = 13000) -> None:
        self.name, self.capability, self.version = name, capability, version

    def cuInit(self, _: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, _: int) -> int:
        device._obj.value = 0
        return 0

    def cuDeviceGetName(self, buffer: Any, *_: Any) -> int:
        buffer.value = self.name.encode()
        return 0

    def cuDeviceGetAttribute(self, number: Any, which: int, _: Any) -> int:
        number._obj.value = self.capability[which - 75]
        return 0

    def cuDriverGetVersion(self, number: Any) -> int:
        number._obj.value = self.version
        return 0
