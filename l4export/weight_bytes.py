"""What each weight of an engine takes on disk, and what kind of weight it is."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir

from l4export.config import ModelConfig
from l4export.errors import InputError
from l4export.passes.projection_packing import JOIN
from l4export.recipes import Constant, Recipe
from l4export.reference import build_reference

__all__ = ["KINDS", "bits_per_weight", "kind_of", "layer_of", "load_graph", "weight_bytes", "weight_shapes"]

KINDS = {
    "embedding": r"model\.embed_tokens\.weight",
    "attention q": r".*\.self_attn\.q_proj\.weight",
    "attention k": r".*\.self_attn\.k_proj\.weight",
    "attention v": r".*\.self_attn\.v_proj\.weight",
    "attention o": r".*\.self_attn\.o_proj\.weight",
    "router": r".*\.router\.weight",
    "experts gate_up": r".*\.experts\.gate_up_proj",
    "experts down": r".*\.experts\.down_proj",
    "shared expert": r".*\.shared_expert\..*",
    "dense MLP": r".*\.feed_forward\.(gate|up|down)_proj\.weight",
    "head": r"lm_head\.weight",
    "norm": r"model\.(.*)norm\.weight",
}
"""Kinds of weights in the order in which a token meets them, by their checkpoint names (without prefix). A tied head
is an embedding."""

_PARTS = re.compile(r"(\.fc[12])?(\.(codes|scales|zero_points))?$")


def kind_of(name: str) -> str:
    """The kind of a weight, one of `KINDS`.

    Raises:
        ValueError: no weight of a model is called so.
    """
    for kind, pattern in KINDS.items():
        if re.fullmatch(pattern, name):
            return kind
    raise ValueError(f"{name} is no weight of a Llama 4 text model")


def layer_of(name: str) -> int | None:
    """The layer of a weight; None for the embedding, the final norm and the head."""
    match = re.match(r"model\.layers\.(\d+)\.", name)
    return int(match[1]) if match else None


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Checkpoint name and shape of every weight of a model."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, shape: tuple[int, ...]) -> Recipe:
        shapes[name] = shape
        return Constant(ir.tensor(np.broadcast_to(np.float32(0), shape)))  # no bytes: only its shape is looked at

    build_reference(config, note, ir.DataType.FLOAT)
    return shapes


def weight_bytes(model: ir.Model, config: ModelConfig) -> dict[str, float]:
    """Bytes of every weight in an engine's graph, codes with scales and zero points, by its checkpoint name.

    Projections that are packed into one initializer share its bytes by their number of weights, since they have their
    width and their scheme in common. Not counted are tables that passes put beside the weights, and a tied head's
    `.codes.packed`, which are the embedding's bytes in another shape.
    """
    shapes = weight_shapes(config)
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
    return 8 * sum(weight_bytes(model, config).values()) / config.parameter_count().total
