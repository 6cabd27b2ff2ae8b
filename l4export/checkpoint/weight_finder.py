"""Finds the weights of the model's inventory among a checkpoint's tensors, in whatever form each is stored.

A form is recognised by the tensors that are there, never by what a file says of itself, and each weight by itself: some
layers may be stored in one form and some in another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from l4export.checkpoint.compressed_tensors import find_linear
from l4export.checkpoint.experts import join_experts
from l4export.checkpoint.fbgemm_experts import find_fp8_experts
from l4export.checkpoint.quantization_scheme import CODES, Scheme
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import StoredWeight
from l4export.errors import InputError

__all__ = ["WeightFinder"]


class WeightFinder:
    """The tensors of a checkpoint, by name, as weights; quantised ones are in one of `schemes`."""

    def __init__(self, tensors: Mapping[str, SourceTensor], schemes: Sequence[Scheme] = ()) -> None:
        self._tensors, self._schemes = tensors, schemes

    def find(self, name: str, shape: tuple[int, ...]) -> StoredWeight | None:
        """The weight `name` (with the checkpoint's prefix), in that shape; None where nothing is stored for it.

        Raises:
            InputError: what is stored has another shape, no float dtype, or lacks a part.
        """
        found = (
            self._plain(name, shape)
            or find_fp8_experts(name, shape, self._tensors, self._schemes)
            or find_linear(name, shape, self._tensors, self._schemes)
            or join_experts(name, shape, self.find)
        )
        if found is None and (codes := self._tensors.get(name)):
            _ = codes.dtype  # refuses codes of what is no linear layer
        return found

    def _plain(self, name: str, shape: tuple[int, ...]) -> StoredWeight | None:
        """A tensor of floats under the weight's own name."""
        tensor = self._tensors.get(name)
        if tensor is None or tensor.entry.dtype in CODES:
            return None
        _ = tensor.dtype
        if tensor.shape != tuple(shape):
            raise InputError(
                f"{tensor.file.path}: tensor {name!r} has shape {list(tensor.shape)}, expected {list(shape)}; "
                "config.json and the weights do not match"
            )
        return tensor
