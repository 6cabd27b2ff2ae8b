"""Adapters in PEFT's layout, and what merging them gives, written out in NumPy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Weights = dict[str, np.ndarray]


def write_adapter(path: Path, tensors: Weights, **config: Any) -> Path:
    """A directory as `save_pretrained` of PEFT writes it, of rank 2 and alpha 3; `tensors` are without the prefix."""
    path.mkdir(parents=True)
    named = {f"base_model.model.{name}": np.ascontiguousarray(values) for name, values in tensors.items()}
    save_file(named, path / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "target_modules": None, **config}
    (path / "adapter_config.json").write_text(json.dumps(about))
    return path


def pair(module: str, out: int, inner: int, rank: int = 2, seed: int = 0) -> Weights:
    """A [rank, inner] and B [out, rank] of a module."""
    random = np.random.default_rng([seed, *module.encode()])
    sizes = {"A": (rank, inner), "B": (out, rank)}
    return {
        f"{module}.lora_{which}.weight": 0.3 * random.standard_normal(size, np.float32) for which, size in sizes.items()
    }


def product(tensors: Weights, module: str, scale: float = 1.5) -> np.ndarray:
    """s B A of a linear layer, in float64."""
    a, b = (tensors[f"{module}.lora_{which}.weight"].astype(np.float64) for which in "AB")
    return scale * b @ a


def of_experts(tensors: Weights, module: str, experts: int, scale: float = 1.5) -> np.ndarray:
    """[experts, rows of B, columns of A]: s B[:, e::experts] A[e r : (e + 1) r] of each expert, in float64."""
    a, b = (tensors[f"{module}.lora_{which}.weight"].astype(np.float64) for which in "AB")
    return scale * np.einsum("ore,erc->eoc", b.reshape(len(b), -1, experts), a.reshape(experts, -1, a.shape[1]))


def with_weights(source: Path, target: Path, weights: Weights) -> Path:
    """A copy of a checkpoint with other values for some weights."""
    shutil.copytree(source, target)
    save_file(load_file(target / "model.safetensors") | weights, target / "model.safetensors")
    return target
