"""What each weight of an engine takes on disk, and what kind of weight it is."""

from __future__ import annotations

import math
import re
from pathlib import Path

import onnx_ir as ir

from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.model.tensors import parameter_count, tensors
from l4export.model.weight_names import JOIN

__all__ = ["bits_per_weight", "load_graph", "weight_bytes"]

_PARTS = re.compile(r"(\.fc[12])?(\.(codes|scales|zero_points))?$")


def weight_bytes(model: ir.Model, config: ModelConfig) -> dict[str, float]:
    """Bytes of every weight in an engine's graph, codes with scales and zero points, by its checkpoint name.

    Projections that are packed into one initializer share its bytes by their number of weights, since they have their
    width and their scheme in common. Not counted are tables that passes put beside the weights, and a tied head's
    `.codes.packed`, which are the embedding's bytes in another shape.
    """
    shapes = tensors(config)
    found = dict.fromkeys(shapes, 0.0)
    for value in model.graph.initializers.values():
        names = _PARTS.sub("", str(value.name)).split(JOIN)
        if value.const_value is None or not all(name in shapes for name in names):
            continue
        counts = [math.prod(shapes[name]) for name in names]
        for name, count in zip(names, counts, strict=True):
            found[name] += value.const_value.nbytes * count / sum(counts)
    return found


def load_graph(engine: Path) -> ir.Model:
    """An engine's graph; weights stay in their files.

    Raises:
        InputError: it is missing or damaged.
    """
    path = engine / "decoder.onnx"
    try:
        return ir.load(path)
    except Exception as error:  # protobuf has exceptions of its own
        raise InputError(f"{path}: not a graph ({type(error).__name__}); build the engine again") from error


def bits_per_weight(model: ir.Model, config: ModelConfig) -> float:
    """Bits of everything stored of the checkpoint's weights, scales included, for each of its parameters."""
    return 8 * sum(weight_bytes(model, config).values()) / parameter_count(config).total
