"""`--dump-ir`: the graph after every pass, to be looked at or run."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from l4export.errors import StorageError
from l4export.weights.recipes import Recipe

__all__ = ["Dump"]

_WEIGHTS_BYTES = 64 << 20
"""Models up to this size are dumped with their weights."""


class Dump:
    """Writes `00-reference.onnx`, `01-limit_context.onnx` and so on into a directory, which it makes.

    Models up to 64 MiB are dumped with their weights and can be run; of larger ones only the structure is dumped.

    Raises:
        StorageError: the directory cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"--dump-ir {directory}: {error.strerror}; choose a writable directory") from error

    def __call__(self, index: int, name: str, model: ir.Model) -> None:
        """Write one stage."""
        tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
        small = sum(tensor.nbytes for tensor in tensors) <= _WEIGHTS_BYTES
        proto = ir.to_proto(model if small else _without_weights(model))
        path = self.directory / f"{index:02d}-{name}.onnx"
        staged = path.with_suffix(".partial")
        staged.unlink(missing_ok=True)
        staged.write_bytes(proto.SerializeToString(deterministic=True))
        staged.replace(path)  # of a link the link itself, not what it leads to


def _without_weights(model: ir.Model) -> ir.Model:
    """A copy whose recipes are declared to lie in a data file that is not written."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, Recipe):
            value.const_value = ir.ExternalTensor(
                "weights-not-dumped", 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=str(value.name)
            )
    return copy
