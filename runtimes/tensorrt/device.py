"""TensorRT engines on a GPU: deserialised, described, executed."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l4export.errors import EnvironmentLacks
from l4export.machine.cuda import Cuda
from l4export.machine.tensorrt_logger import new_logger
from l4export.runtimes.cache.binding_plan import Tensor
from l4export.runtimes.cache.device import Binding, Buffer
from l4export.runtimes.tensorrt.plan import Range, Reported

__all__ = ["TensorRTDevice"]

_DTYPES = {"INT64": "int64", "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
"""TensorRT's names of NumPy's types."""


class TensorRTDevice:
    """Deserialised engines, one for each part of a decoder; `trt` is the module `tensorrt` or `tensorrt_rtx`.

    Raises:
        EnvironmentLacks: TensorRT does not take an engine: another version, or another GPU, than it was built for.
    """

    records_steps = False

    def __init__(self, trt: Any, engines: Sequence[Path], cuda: Cuda) -> None:
        self._trt, self._cuda = trt, cuda
        self._logger = new_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engines = [self._deserialized(path) for path in engines]
        self._creating = threading.Lock()  # TensorRT wants calls on one engine one after the other

    def allocate(self, nbytes: int) -> Buffer:
        """As `l4export.runtimes.cache.device.Device`."""
        return self._cuda.allocate(nbytes)

    def binding(self, part: int, profile: int, fixed: bool = False) -> Binding:
        """An execution context in that profile, of this binding alone; nothing is gained by `fixed`."""
        with self._creating:
            context = self._engines[part].create_execution_context()
            if context is None:
                raise MemoryError("the GPU has no memory for an execution context")
            if not context.set_optimization_profile_async(profile, self._cuda.stream):
                raise RuntimeError(f"the engine has no optimisation profile {profile}")
            self._cuda.synchronize()
        return _Context(context, self._cuda)

    def reported(self, part: int) -> Mapping[str, Reported]:
        """What a part's engine says of each of its inputs and outputs."""
        engine = self._engines[part]
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {name: self._of(engine, name) for name in names}

    def _deserialized(self, path: Path) -> Any:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
            engine = self._runtime.deserialize_cuda_engine(blob)
        if engine is None:
            trt, cuda, errors = self._trt, self._cuda, self._logger.errors
            capability = ".".join(map(str, cuda.capability))
            why = " ".join(errors[0].split())[:300] if errors else "it does not say why"
            raise EnvironmentLacks(
                f"{path}: {trt.__name__} {trt.__version__} on {cuda.name} (compute capability {capability}) "
                f"does not take it ({why}); build it again with this version and for this GPU"
            )
        return engine

    def _of(self, engine: Any, name: str) -> Reported:
        trt, dtype = self._trt, engine.get_tensor_dtype(name).name
        is_output = engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
        profiles = () if is_output else range(engine.num_optimization_profiles)
        return Reported(
            dtype=_DTYPES.get(dtype, dtype),
            shape=tuple(engine.get_tensor_shape(name)),
            is_output=is_output,
            on_host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
            ranges=tuple(_range(engine, name, profile) for profile in profiles),
            shares=engine.get_aliased_input_tensor(name) if is_output else None,
        )


def _range(engine: Any, name: str, profile: int) -> Range:
    if len(engine.get_tensor_shape(name)):
        least, _, most = engine.get_tensor_profile_shape(name, profile)
    else:
        least, _, most = engine.get_tensor_profile_values(profile, name)
    return tuple(least), tuple(most)


class _Context:
    """An execution context: a binding in TensorRT's own terms."""

    def __init__(self, context: Any, cuda: Cuda) -> None:
        self._context, self._cuda = context, cuda

    def bind(self, tensor: Tensor, shape: tuple[int, ...], address: int) -> None:
        if not tensor.is_output and tensor.shape and not self._context.set_input_shape(tensor.name, shape):
            raise RuntimeError(f"TensorRT does not take {tensor.name} with shape {list(shape)}")
        if not self._context.set_tensor_address(tensor.name, address):
            raise RuntimeError(f"TensorRT does not take the address of {tensor.name}")

    def run(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise RuntimeError("TensorRT could not execute the engine")
        self._cuda.synchronize()
