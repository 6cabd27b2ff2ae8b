"""A device that ONNX Runtime drives."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import one_line
from l4export.machine.cuda import ONE_AT_A_TIME, Cuda
from l4export.runtimes.cache.binding_plan import Tensor
from l4export.runtimes.cache.device import Binding, Buffer
from l4export.runtimes.onnxruntime.recordings import Recordings, out_of_memory

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntimeDevice"]


class OnnxRuntimeDevice:
    """The memory of an execution provider (`kind` "cuda" or "cpu") and calls on it, each part an inference session.

    With `cuda`, buffers come from the driver: ONNX Runtime's own allocator would round the caches of a long context up
    to a power of two. With `recordings`, the sessions were opened for CUDA graphs; calls are then made one at a time,
    whichever thread they come from, because nothing else may use the GPU while a step is recorded.
    """

    def __init__(
        self,
        parts: Sequence[onnxruntime.InferenceSession],
        kind: str,
        cuda: Cuda | None = None,
        recordings: Recordings | None = None,
    ) -> None:
        self.parts = parts
        self.kind = kind
        self.records_steps = recordings is not None
        self._cuda = cuda
        self._recordings = recordings

    def allocate(self, nbytes: int) -> Buffer:
        """As `l4export.runtimes.cache.device.Device`."""
        return _Buffer(nbytes, self.kind) if self._cuda is None else self._cuda.allocate(nbytes)

    def binding(self, part: int, profile: int, fixed: bool = False) -> Binding:
        """As `l4export.runtimes.cache.device.Device`; one profile is as good as another."""
        return _Binding(self.parts[part], self.kind, self._recordings, fixed)


class _Buffer:
    def __init__(self, nbytes: int, kind: str) -> None:
        import onnxruntime as ort

        self._nbytes, self._kind = nbytes, kind
        try:
            self._value: Any = ort.OrtValue.ortvalue_from_shape_and_type([nbytes], np.uint8, kind, 0)
        except Exception as error:  # ONNX Runtime has no type of its own for it
            raise MemoryError(f"{nbytes} bytes on {kind}") from error
        self._value.update_inplace(np.zeros(nbytes, dtype=np.uint8))

    @property
    def address(self) -> int:
        return int(self._value.data_ptr())

    def write(self, array: NDArray[Any], at: int = 0) -> None:
        whole = self._value.numpy()
        whole[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
        self._value.update_inplace(whole)

    def read(self, array: NDArray[Any], at: int = 0) -> None:
        array.reshape(-1).view(np.uint8)[:] = self._value.numpy()[at : at + array.nbytes]

    def copy(self) -> _Buffer:
        other = _Buffer(self._nbytes, self._kind)
        other.take(self)
        return other

    def take(self, other: _Buffer) -> None:
        self._value.update_inplace(other._value.numpy())


class _Binding:
    def __init__(
        self, inference: onnxruntime.InferenceSession, kind: str, recordings: Recordings | None, fixed: bool
    ) -> None:
        self._inference = inference
        self._kind = kind
        self._binding: Any = inference.io_binding()
        self._recordings = recordings
        self._recording = recordings.new_id(self) if recordings is not None and fixed else None

    def bind(self, tensor: Tensor, shape: tuple[int, ...], address: int) -> None:
        bind = self._binding.bind_output if tensor.is_output else self._binding.bind_input
        bind(tensor.name, "cpu" if tensor.on_host else self._kind, 0, tensor.dtype.type, shape, address)

    def run(self) -> None:
        alone: AbstractContextManager[object] = nullcontext() if self._recordings is None else ONE_AT_A_TIME
        try:
            with alone:
                if self._recordings is None:
                    self._inference.run_with_iobinding(self._binding)
                else:
                    self._recordings.run(self._inference, self._binding, self._recording)
        except Exception as error:
            if out_of_memory(error):
                raise MemoryError(
                    f"{self._kind} has no memory left for it; feed shorter prompts or end another session "
                    f"({one_line(error)[:200]})"
                ) from error
            raise
