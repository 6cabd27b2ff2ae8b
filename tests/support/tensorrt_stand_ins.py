"""A stand-in for TensorRT's runtime for a compiled engine, on the driver of `cuda_stand_ins`.

The engine is the lowered graph on ONNX Runtime's CPU provider, without the one
attribute that ONNX Runtime refuses, and says of itself what TensorRT's own parser says of that graph.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import tensorrt_rtx as trt

from cuda_stand_ins import Driver
from l4export.runtimes.tensorrt.plan import Reported
from l4export.targets.tensorrt import compile_process as tensorrt_compile

NUMPY = {"INT64": np.int64, "FLOAT": np.float32, "HALF": np.float16}
NAMES = {"INT64": "int64", "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


def without_attribute(graph: Path) -> ort.InferenceSession:
    """The graph that TensorRT compiles, on a CPU."""
    model = ir.load(graph)
    for node in model.graph:
        node.attributes.pop("TRT_decomposable", None)
    settings: Any = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(graph.parent.absolute())
    )
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"])


def parsed(path: Path, profiles: Sequence[tuple[int, int, int]]) -> dict[str, Reported]:
    """What TensorRT itself makes of a graph: parsed, with optimisation profiles as the build sets them.

    Whether an output takes an input's memory is known of a compiled engine alone; here it is what the graph says.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path))
    graph = ir.load(path).graph
    scatters = {str(n.outputs[0].name): str(n.inputs[0].name) for n in graph if n.op_type == "TensorScatter"}  # type: ignore[union-attr]
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    ranges: dict[str, list[Any]] = {tensor.name: [] for tensor in inputs}
    for tokens in profiles:
        shapes = tensorrt_compile.profile_shapes(graph.inputs, tokens)
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            scalar = not len(tensor.shape)
            (profile.set_shape_input if scalar else profile.set_shape)(tensor.name, *shapes[tensor.name])
            least, _, most = (profile.get_shape_input if scalar else profile.get_shape)(tensor.name)
            ranges[tensor.name].append((tuple(least), tuple(most)))
        assert profile
    return {
        tensor.name: Reported(
            dtype=NAMES[tensor.dtype.name],
            shape=tuple(tensor.shape),
            is_output=index >= len(inputs),
            on_host=index < len(inputs) and tensor.is_shape_tensor,
            ranges=tuple(ranges.get(tensor.name, ())),
            shares=scatters.get(tensor.name),
        )
        for index, tensor in enumerate([*inputs, *outputs])
    }


class Context:
    """An execution context, which checks what TensorRT would."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return profile < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None
        self.shapes[name] = shape
        least, most = self.engine.told[name].ranges[self.profile]
        return all(low <= dim <= high for low, dim, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.told

    def execute_async_v3(self, stream: int) -> bool:
        told, driver = self.engine.told, self.engine.driver
        assert set(self.addresses) == set(told)
        for name, address in self.addresses.items():
            assert (address in driver.memory) is not told[name].on_host, name
            assert told[name].shares is None or address == self.addresses[told[name].shares]
        given: dict[str, int] = {"batch": 1}
        if "attention_mask" in self.shapes:
            given["sequence"] = self.shapes["attention_mask"][1]
        else:
            given["rows"] = self.shapes["pixel_values"][0] * self.engine.rows_per_tile
        if address := self.addresses.get("logits_to_keep"):
            (keep,) = (ctypes.c_int64 * 1).from_address(address)
            given["logits_sequence"] = keep or given["sequence"]
        binding = self.engine.inference.io_binding()
        for value in self.engine.inference.get_inputs():
            shape = self.shapes.get(value.name, ())
            binding.bind_input(value.name, "cpu", 0, self.engine.dtype(value.name), shape, self.addresses[value.name])
        for value in self.engine.inference.get_outputs():
            declared = tuple(given.get(dim, dim) for dim in value.shape)
            shape = self.shapes.get(told[value.name].shares or "", declared)
            binding.bind_output(value.name, "cpu", 0, self.engine.dtype(value.name), shape, self.addresses[value.name])
        self.engine.inference.run_with_iobinding(binding)
        return True


class Engine:
    """A deserialised engine."""

    def __init__(self, graph: Path, told: Mapping[str, Reported], driver: Driver, rows_per_tile: int = 0) -> None:
        self.told, self.driver = told, driver
        self.inference = without_attribute(graph)
        self.num_io_tensors = len(told)
        self.num_optimization_profiles = max(len(tensor.ranges) for tensor in told.values())
        self.rows_per_tile = rows_per_tile
        self.contexts: list[Context] = []

    def dtype(self, name: str) -> Any:
        return np.dtype(self.told[name].dtype).type

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def get_tensor_name(self, index: int) -> str:
        return list(self.told)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={ours: theirs for theirs, ours in NAMES.items()}[self.told[name].dtype])

    def get_tensor_mode(self, name: str) -> str:
        return "OUTPUT" if self.told[name].is_output else "INPUT"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.told[name].shape

    def get_tensor_location(self, name: str) -> str:
        return "HOST" if self.told[name].on_host else "DEVICE"

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.told[name].shares

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        least, most = self.told[name].ranges[profile]
        return [least, most, most]

    def get_tensor_profile_values(self, profile: int, name: str) -> list[tuple[int, ...]]:
        return self.get_tensor_profile_shape(name, profile)


def runtime_module(engines: Sequence[Engine]) -> Any:
    """The module tensorrt_rtx, whose runtime deserialises those engines, one after the other, and no other."""

    class ILogger:
        ERROR, INTERNAL_ERROR = "error", "internal"

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger, self.left = logger, list(engines)

        def deserialize_cuda_engine(self, blob: Any) -> Engine | None:
            assert len(blob) > 0
            if not self.left:
                self.logger.log("error", "the plan is for another\nGPU")
                return None
            return self.left.pop(0)

    return SimpleNamespace(
        __name__="tensorrt_rtx",
        __spec__=ModuleSpec("tensorrt_rtx", None),
        __version__="0.0",
        ILogger=ILogger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(OUTPUT="OUTPUT"),
        TensorLocation=SimpleNamespace(HOST="HOST"),
    )
