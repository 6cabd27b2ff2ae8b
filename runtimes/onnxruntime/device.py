"""A device that ONNX Runtime drives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.runtimes.cache.binding_plan import Tensor
from l4export.runtimes.cache.device import Binding, Buffer

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntimeDevice"]


class OnnxRuntimeDevice:
    """The memory of an execution provider (`kind` "cuda" or "cpu") and calls on it, each part an inference session."""

    def __init__(self, parts: Sequence[onnxruntime.InferenceSession], kind: str) -> None:
        self.parts = parts
        self.kind = kind

    def allocate(self, nbytes: int) -> Buffer:
        """As `l4export.runtimes.cache.device.Device`."""
        return _Buffer(nbytes, self.kind)

    def binding(self, part: int, profile: int) -> Binding:
        """As `l4export.runtimes.cache.device.Device`; one profile is as good as another."""
        return _Binding(self.parts[part], self.kind)


class _Buffer:
    def __init__(self, nbytes: int, kind: str) -> None:
        import onnxruntime as ort

        try:
            self._value: Any = ort.OrtValue.ortvalue_from_shape_and_type([nbytes], np.uint8, kind, 0)
        except Exception as error:  # ONNX Runtime has no type of its own for it
            raise MemoryError(f"{nbytes} bytes on {kind}") from error
        self._value.update_inplace(np.zeros(nbytes, dtype=np.uint8))

    @property
    def address(self) -> int:
        return int(self._value.data_ptr())

    def write(self, array: NDArray[Any]) -> None:
        self._value.update_inplace(array.reshape(-1).view(np.uint8))

    def read(self, array: NDArray[Any]) -> None:
        array.reshape(-1).view(np.uint8)[:] = self._value.numpy()


class _Binding:
    def __init__(self, inference: onnxruntime.InferenceSession, kind: str) -> None:
        self._inference = inference
        self._kind = kind
        self._binding: Any = inference.io_binding()

    def bind(self, tensor: Tensor, shape: tuple[int, ...], address: int) -> None:
        bind = self._binding.bind_output if tensor.is_output else self._binding.bind_input
        bind(tensor.name, "cpu" if tensor.on_host else self._kind, 0, tensor.dtype.type, shape, address)

    def run(self) -> None:
        self._inference.run_with_iobinding(self._binding)
