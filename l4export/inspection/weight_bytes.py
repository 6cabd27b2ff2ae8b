"""What each weight of an engine takes on disk, and what kind of weight it is."""

from __future__ import annotations

import math

import onnx_ir as ir

from l4export.graph.contents import weights_of
from l4export.model.config import ModelConfig
from l4export.model.tensors import parameter_count, tensors

__all__ = ["bits_per_weight", "weight_bytes"]


def weight_bytes(model: ir.Model, config: ModelConfig) -> dict[str, float]:
    """Bytes of every weight in an engine's graph, codes with scales and zero points, by its checkpoint name.

    Projections that are packed into one initializer share its bytes by their number of weights, since they have their
    width and their scheme in common. Tables that passes put beside the weights are not counted, and codes that two
    operators read in two shapes, as those of a tied head, are counted once.
    """
    shapes = tensors(config)
    found = dict.fromkeys(shapes, 0.0)
    stored = {weights_of(value): value.const_value for value in model.graph.initializers.values()}
    for held, tensor in stored.items():
        if held is None or tensor is None or not all(name in shapes for name in held.names):
            continue
        counts = [math.prod(shapes[name]) for name in held.names]
        for name, count in zip(held.names, counts, strict=True):
            found[name] += tensor.nbytes * count / sum(counts)
    return found


def bits_per_weight(model: ir.Model, config: ModelConfig) -> float:
    """Bits of everything stored of the checkpoint's weights, scales included, for each of its parameters."""
    return 8 * sum(weight_bytes(model, config).values()) / parameter_count(config).total
