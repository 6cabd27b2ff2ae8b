"""What weights with adapters are by the definition, in float64, from a file's own tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fuzz_files import Pieces, pieces_of

__all__ = ["check_merged"]

_ROUNDING = 2.0**-18
"""Of the sizes of everything that is added, summed: float32 rounds to 2**-24, and at most a dozen terms are there."""
_LEAST = 2.0**-149
"""The smallest number of float32, and so the error of a smaller one."""


def check_merged(base: Path, adapters: Sequence[Path], layers: tuple[int, int], by_definition: bool) -> None:
    """Of the layers that were built: all weights are finite, and those of the adapter are what the definition says.

    `by_definition` is for one adapter whose config and names are as they were written.

    Raises:
        AssertionError: one is not.
    """
    from l4export.checkpoint import open_checkpoint
    from l4export.model.tensors import tensors
    from l4export.model.weight_names import layer_of

    plain, merged = open_checkpoint(base), open_checkpoint(base, adapters)
    definition = _Definition(adapters[0]) if by_definition else None
    for name, shape in tensors(plain.config).items():
        layer = layer_of(name)
        if layer is not None and not layers[0] <= layer < layers[1]:
            continue
        found = merged.tensor(name, shape).read().astype(np.float64)
        assert np.isfinite(found).all(), f"{name} is not finite, and was built"
        if definition:
            meant, error = definition.weight(name, plain.tensor(name, shape).read().astype(np.float64))
            assert (np.abs(found - meant) <= error + 1e-37).all(), f"{name} is not what the definition gives"


class _Definition:
    """An adapter as it was read, tensor by tensor."""

    def __init__(self, path: Path) -> None:
        self.pieces: Pieces = pieces_of((path / "adapter_model.safetensors").read_bytes())
        self.config: dict[str, Any] = json.loads((path / "adapter_config.json").read_text())

    def weight(self, name: str, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The merged weight, and how far from it float32 may be."""
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"base_model.model.{name}" in self.pieces:
            return self.array(f"base_model.model.{name}"), np.zeros(base.shape)
        if f"{module}.lora_embedding_A" in self.pieces:
            a, b = self.array(f"{module}.lora_embedding_A"), self.array(f"{module}.lora_embedding_B")
            return _sum(base, 1.5, a.T, b.T)
        if f"{module}.lora_A.weight" in self.pieces:
            merged = self.linear(base, module)
            return self.with_magnitudes(*merged, module) if self.config.get("use_dora") else merged
        parent, _, tensor = module.rpartition(".")
        if parent.endswith(".experts"):
            found = [self.expert(parent, tensor, expert, matrix) for expert, matrix in enumerate(base)]
            return np.stack([meant for meant, _ in found]), np.stack([error for _, error in found])
        return base, np.zeros(base.shape)

    def expert(self, module: str, tensor: str, expert: int, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[in, out], by a parameter of all experts or by linear layers of this one."""
        place = module if tensor == "down_proj" else f"{module}.base_layer"
        if f"{place}.lora_A.weight" in self.pieces:
            a, b = self.array(f"{place}.lora_A.weight"), self.array(f"{place}.lora_B.weight")
            return _sum(matrix, 1.5, b[:, expert::4], a[2 * expert : 2 * expert + 2])
        linears = ["down_proj"] if tensor == "down_proj" else ["gate_proj", "up_proj"]
        halves = []
        for linear, half in zip(linears, np.split(matrix, len(linears), axis=1), strict=True):
            path = f"{module}.{expert}.{linear}"
            there = f"{path}.lora_A.weight" in self.pieces
            halves.append(self.linear(half.T, path) if there else (half.T, np.zeros(half.T.shape)))
        return np.concatenate([meant for meant, _ in halves]).T, np.concatenate([error for _, error in halves]).T

    def linear(self, base: np.ndarray, module: str) -> tuple[np.ndarray, np.ndarray]:
        """[out, in]."""
        a, b = self.array(f"{module}.lora_A.weight"), self.array(f"{module}.lora_B.weight")
        last = module.rpartition(".")[2]
        alpha = self.config.get("alpha_pattern", {}).get(last, self.config["lora_alpha"])
        scale = alpha / (math.sqrt(len(a)) if self.config.get("use_rslora") else len(a))
        return _sum(base, scale, b, a)

    def with_magnitudes(self, merged: np.ndarray, error: np.ndarray, module: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows that have magnitudes of their own. An error of a row's norm is one of all of the row."""
        magnitudes = np.abs(self.array(f"{module}.lora_magnitude_vector"))[:, None]
        signed = self.array(f"{module}.lora_magnitude_vector")[:, None]
        norms = np.linalg.norm(merged, axis=1, keepdims=True)
        of_norms = np.linalg.norm(error, axis=1, keepdims=True)
        meant = signed * merged / norms
        return meant, magnitudes / norms * (error + np.abs(merged) / norms * of_norms) + _ROUNDING * np.abs(meant)

    def array(self, name: str) -> np.ndarray:
        """A tensor in float64."""
        entry, data = self.pieces[name]
        return np.frombuffer(data, np.float32).reshape(entry["shape"]).astype(np.float64)


def _sum(base: np.ndarray, scale: float, b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """base + s B A, and `_ROUNDING` of the sizes of all that is added; s B, or s A^T, may be rounded to `_LEAST`."""
    size = np.abs(base) + abs(scale) * np.abs(b) @ np.abs(a)
    least = _LEAST * (np.abs(b).sum(axis=1, keepdims=True) + np.abs(a).sum(axis=0))
    return base + scale * b @ a, _ROUNDING * size + least
