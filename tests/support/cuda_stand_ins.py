"""Stand-ins for what a machine without a GPU lacks: NVIDIA's driver, and ONNX Runtime's CUDA provider.

The driver's memory is this process's, so that the CPU provider can execute what is bound there. A session on "CUDA" is
one on the CPU that holds its caller to what CUDA asks for: tensors lie where they are bound to lie, and of what was
recorded as a CUDA graph nothing may have moved.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from judged_engines import cpu_form
from l4export.benchmark import gpu
from l4export.runtimes.onnxruntime import engine

CUDA = "CUDAExecutionProvider"


class Driver:
    """libcuda.so.1, with one GPU whose memory is the host's."""

    def __init__(self, name: str = "Stand-in", capability: tuple[int, int] = (8, 9), version: int = 13000) -> None:
        self.memory: dict[int, Any] = {}
        self.name, self.capability, self.version = name, capability, version
        self.limit = self.total = 1 << 34

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, index: Any) -> int:
        return int(index.value != 0)

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        context._obj.value = 0xC0
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        return int(context.value != 0xC0)

    def cuStreamCreate(self, stream: Any, flags: Any) -> int:
        stream._obj.value = 0x57
        return 0

    def cuStreamSynchronize(self, stream: Any) -> int:
        return int(stream.value not in (None, 0x57))

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = self.limit, self.total
        return 0

    def cuMemcpyDtoD_v2(self, target: Any, source: Any, size: Any) -> int:
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuDeviceGetName(self, name: Any, length: Any, device: Any) -> int:
        name.value = self.name.encode()
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: Any, device: Any) -> int:
        number._obj.value = self.capability[attribute.value - 75]
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        if size.value > self.limit:
            return 2
        block = ctypes.create_string_buffer(b"\xff" * size.value, size.value)
        address._obj.value = ctypes.addressof(block)
        self.memory[ctypes.addressof(block)] = block
        return 0

    def cuMemsetD8_v2(self, address: Any, value: Any, size: Any) -> int:
        ctypes.memset(address.value, value.value, size.value)
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        return 0 if self.memory.pop(address.value, None) else 1

    def holds(self, address: int) -> bool:
        """Whether it lies in the GPU's memory."""
        return any(start <= address < start + len(block) for start, block in self.memory.items())

    def cuMemcpyHtoD_v2(self, address: Any, source: Any, size: Any) -> int:
        ctypes.memmove(address.value, source.value, size.value)
        return 0

    def cuMemcpyDtoH_v2(self, target: Any, address: Any, size: Any) -> int:
        ctypes.memmove(target.value, address.value, size.value)
        return 0


class CudaSession:
    """An inference session that says it is on CUDA. `machine` is shared by all sessions of a test."""

    def __init__(self, machine: Machine, inner: Any) -> None:
        self.machine, self.inner = machine, inner
        self.recorded: dict[int, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def get_input_memory_infos(self) -> list[Any]:
        on_host = self.machine.on_host
        return [SimpleNamespace(name="Cpu" if v.name in on_host else "Cuda") for v in self.inner.get_inputs()]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = [SimpleNamespace(**node) for node in self.machine.on_cpu]
        return [SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes)] if nodes else []

    def end_profiling(self) -> str:
        path = Path(self.inner.end_profiling())
        events = json.loads(path.read_text())
        for event in events:
            if event["cat"] == "Node":
                event["args"]["provider"] = CUDA
        path.write_text(json.dumps(events))
        return str(path)

    def io_binding(self) -> CudaBinding:
        return CudaBinding(self)

    def release_captured_graph(self, number: int) -> None:
        self.recorded.pop(number, None)

    def run_with_iobinding(self, binding: CudaBinding, options: Any) -> None:
        machine, number = self.machine, int(options.get_run_config_entry("gpu_graph_id"))
        if machine.out_of_memory:
            raise RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer of size 1024")
        machine.runs.append(number)
        if number == -1:
            self.inner.run_with_iobinding(binding.inner)
            return
        if machine.records is not None:
            raise RuntimeError(machine.records)
        if number not in self.recorded:
            self.inner.run_with_iobinding(binding.inner)  # the warm-up; a step may run twice
            self.recorded[number] = binding.snapshot()
        assert binding.snapshot() == self.recorded[number], "a recording is repeated where it was made"
        self.inner.run_with_iobinding(binding.inner)


class CudaBinding:
    """An IO binding: what is bound "on cuda" must lie in the driver's memory, all else outside of it."""

    def __init__(self, session: CudaSession) -> None:
        self.session, self.inner = session, session.inner.io_binding()
        self.bound: dict[str, tuple[str, Any, tuple[int, ...], int]] = {}

    def bind_input(self, name: str, kind: str, index: int, dtype: Any, shape: tuple[int, ...], address: int) -> None:
        assert (kind == "cpu") == (name in self.session.machine.on_host), f"{name} is bound on {kind}"
        self._bind(self.inner.bind_input, name, kind, dtype, shape, address)

    def bind_output(self, name: str, kind: str, index: int, dtype: Any, shape: tuple[int, ...], address: int) -> None:
        self._bind(self.inner.bind_output, name, kind, dtype, shape, address)

    def _bind(self, bind: Any, name: str, kind: str, dtype: Any, shape: tuple[int, ...], address: int) -> None:
        assert self.session.machine.driver.holds(address) == (kind == "cuda"), f"{name} does not lie on {kind}"
        bind(name, "cpu", 0, dtype, shape, address)
        self.bound[name] = kind, dtype, shape, address

    def snapshot(self) -> dict[str, Any]:
        """Everything that a recording keeps: addresses, shapes, and the values that the host reads."""
        held = {
            name: ctypes.string_at(address, int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize)
            for name, (kind, dtype, shape, address) in self.bound.items()
            if kind == "cpu"
        }
        return {"bound": dict(self.bound), "held": held}


class Machine:
    """A machine with a GPU.

    Attributes:
        driver: NVIDIA's.
        on_host: Inputs that graphs read on the host.
        on_cpu: Nodes (domain, op_type, name) that sessions leave to the CPU.
        refuses: What ONNX Runtime says to a session with CUDA graphs; None: it takes it.
        records: What recording a step fails with; None: it works.
        out_of_memory: Whether every run fails for want of memory.
        runs: The ids under which steps ran, -1 without.
        options: Of each session, those of the provider and of the session.
        tower: What it executes for the file of a vision tower.
    """

    def __init__(self) -> None:
        self.driver = Driver()
        self.on_host: Collection[str] = {"logits_to_keep"}
        self.on_cpu: list[dict[str, str]] = []
        self.refuses: str | None = None
        self.records: str | None = None
        self.out_of_memory = False
        self.runs: list[int] = []
        self.options: list[tuple[dict[str, str], Any]] = []
        self.tower: Callable[[Path], bytes] = Path.read_bytes


def install(patch: pytest.MonkeyPatch, judges: bool = False) -> Machine:
    """Put the stand-ins in the place of the driver and of ONNX Runtime's package for GPUs.

    Engines are opened without being judged by their check graphs, unless this machine `judges`.
    """
    if not judges:
        patch.setattr(engine, "trust", lambda *_: None)
        patch.setattr(engine, "trust_tower", lambda *_: None)
    patch.setattr(gpu, "_MOST_BYTES", 1 << 24)  # copies of a gigabyte say nothing here
    machine, inference, library = Machine(), ort.InferenceSession, ctypes.CDLL

    def open_session(graph: Any, options: Any = None, providers: Any = (), **others: Any) -> Any:
        first = providers[0] if providers else None
        name, chosen = first if isinstance(first, tuple) else (first, {})
        if name != CUDA:
            return inference(graph, options, providers=providers)
        if chosen.get("enable_cuda_graph") == "1" and machine.refuses is not None:
            raise RuntimeError(machine.refuses)
        machine.options.append((chosen, options))
        folder = str(Path(graph).parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        form = machine.tower(Path(graph)) if Path(graph).name == "vision.onnx" else cpu_form(Path(graph))
        return CudaSession(machine, inference(form, options, providers=["CPUExecutionProvider"]))

    patch.setattr(ctypes, "CDLL", lambda name, *a: machine.driver if name == "libcuda.so.1" else library(name, *a))
    patch.setattr(ort, "InferenceSession", open_session)
    patch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    patch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    patch.setattr(ort, "cuda_version", "13.0", raising=False)
    return machine
