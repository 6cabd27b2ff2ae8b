"""How the weights of sample checkpoints are drawn: seeded, and so that activations stay of order one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from l4export.checkpoint.hf_config import config_from_hf, text_config
from l4export.checkpoint.hf_vision import vision_from_hf
from l4export.model.config import ModelConfig
from l4export.model.tensors import tensors, vision_tensors
from l4export.model.weight_names import kind_of

__all__ = ["SampleWeight", "blocks", "drawn", "generator_of", "weights_of_sample"]

_BLOCK = 8 * 2**20  # elements drawn at a time: 32 MiB of float32
_GAINS = {
    "router": 2.5,  # scores from 0.1 to 0.99, so that experts differ clearly
    "head": 2.5,
    "embedding": 2.5,  # where it is the head too
}
"""Standard deviations of a weight's outputs for inputs of order one, where they are not 1."""
_ADAPTER_GAIN = 1.4  # GELU halves what passes; the projector is the third in a row
_BIAS = 0.1


@dataclass(frozen=True)
class SampleWeight:
    """One tensor to draw: normal with a standard deviation, or a norm's (`std` None), uniform in [0.5, 1.5).

    It is stored under `prefix` and `name`, and seeded with `name` alone: a text model has the same weights with a
    vision tower beside it.
    """

    name: str
    shape: tuple[int, ...]
    std: float | None
    prefix: str = ""


def weights_of_sample(raw: dict[str, Any]) -> list[SampleWeight]:
    """Every tensor of the model."""
    config, whole = config_from_hf(raw, "sample"), text_config(raw) is not raw
    prefix = "language_model." if whole else ""
    found = [
        SampleWeight(name, shape, _deviation(name, shape, config), prefix) for name, shape in tensors(config).items()
    ]
    if whole:
        shapes = vision_tensors(vision_from_hf(raw, "sample", config.vocab_size), config.hidden_size)
        found += [SampleWeight(name, shape, _vision_deviation(name, shape)) for name, shape in shapes.items()]
    return found


def _deviation(name: str, shape: tuple[int, ...], config: ModelConfig) -> float | None:
    """The standard deviation that keeps activations of order one; None for a norm."""
    kind = kind_of(name)
    if kind == "norm":
        return None
    if kind == "embedding" and not config.tie_word_embeddings:
        return 1.0
    width = shape[1]  # of the input, in [out, in] and in [experts, in, out]
    return _GAINS.get(kind, 1.0) / math.sqrt(width)


def _vision_deviation(name: str, shape: tuple[int, ...]) -> float | None:
    """The standard deviation of a tower's weight that keeps activations of order one; None for a norm's."""
    if "norm" in name:
        return _BIAS if name.endswith(".bias") else None
    if name.endswith(".bias"):
        return _BIAS
    if len(shape) == 1 or "positional" in name:
        return 1.0
    return (_ADAPTER_GAIN if "adapter" in name or "projector" in name else 1.0) / math.sqrt(shape[1])


def blocks(weight: SampleWeight, seed: int, dtype: str) -> Iterator[np.ndarray]:
    """The tensor's bytes in blocks, uint8; drawn in float32, rounded to bfloat16 if `dtype` is BF16."""
    whole, rest = divmod(math.prod(weight.shape), _BLOCK)
    for values in drawn(weight, seed, [_BLOCK] * whole + [rest] * bool(rest)):
        yield (values if dtype == "F32" else values.astype(ml_dtypes.bfloat16)).view(np.uint8)


def drawn(weight: SampleWeight, seed: int, sizes: Iterable[int]) -> Iterator[np.ndarray]:
    """The tensor's elements in pieces of these sizes, float32. Where they are cut changes none of them."""
    generator = generator_of(weight.name, seed)
    for size in sizes:
        if weight.std is None:
            yield generator.random(size, np.float32) + np.float32(0.5)
        else:
            values = generator.standard_normal(size, np.float32)
            values *= np.float32(weight.std)
            yield values


def generator_of(name: str, seed: int) -> np.random.Generator:
    """The random numbers of a tensor, which depend on nothing but its name and the seed."""
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))
