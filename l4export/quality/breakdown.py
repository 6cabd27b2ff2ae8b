"""Where an engine's damage comes from: its parts, which are measured one by one.

For each part the reference gets the engine's own dequantised weights of that part, and the checkpoint's weights of all
others. Its loss is KL(reference || reference with that part). All parts together are measured too. What the engine
loses beyond that comes from rounding during the computation (int8 activations, float16), and not from weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from l4export.engine.described import Described
from l4export.engine.kv_cache import KV_BITS
from l4export.graph.contents import LayerValue, layer_value_of
from l4export.graph.matching import nodes_of, producer
from l4export.inspection.engine_weights import open_weights
from l4export.inspection.graph_file import load_graph
from l4export.model.tensors import tensors
from l4export.model.weight_names import KINDS, kind_of, layer_of
from l4export.reference.streamed_layer import Store
from l4export.reference.variants import Variant

__all__ = ["KV_CACHE", "MeasuredPart", "parts_of"]

KV_CACHE = "KV cache"


@dataclass(frozen=True)
class MeasuredPart:
    """A part that is measured by itself.

    `variant` is the reference with only this part as the engine has it. `group` is `all`, `layer` or `kind`. The `name`
    of a layer is its number in the checkpoint. `bits_per_weight` is what the part's weights are stored in, with scales.
    It is None for the cache, and for everything together.
    """

    group: str
    name: str
    bits_per_weight: float | None
    variant: Variant


def parts_of(engine: Path, manifest: Described, first_layer: int) -> list[MeasuredPart]:
    """List everything together, each layer and each kind of weight in which an engine differs from the checkpoint.

    A cache with fewer bits than float32 counts as a kind. Keys and values are then rounded as the engine rounds them,
    with its scales, before attention reads them. With the layout `chunked` they are rounded as rotated by their
    position, not by their slot. `first_layer` is the checkpoint's number of the engine's first layer. The list is empty
    for an engine with float32 caches and no quantised weight.
    """
    weights, stores = open_weights(engine), _stores(engine, manifest)
    stored, shapes = weights.stored_bytes(), tensors(manifest.model)

    def part(group: str, name: str, names: Sequence[str]) -> MeasuredPart:
        bits = 8 * sum(stored[each] for each in names) / sum(int(np.prod(shapes[each])) for each in names)
        return MeasuredPart(group, name, bits, Variant(frozenset(names), weights.rows))

    if not weights.names and not stores:
        return []
    layers, kinds = _grouped(weights.names, layer_of), _grouped(weights.names, kind_of)
    named = {kind: _shown(kind, manifest) for kind in KINDS if kind in kinds}
    return [
        MeasuredPart("all", "everything together", None, Variant(frozenset(weights.names), weights.rows, stores)),
        *(part("layer", f"{first_layer + at}", layers[at]) for at in sorted(set(layers) - {None})),
        *(part("kind", name, kinds[kind]) for kind, name in named.items()),
        *([MeasuredPart("kind", KV_CACHE, None, Variant(frozenset(), weights.rows, stores))] if stores else []),
    ]


def _grouped(names: Sequence[str], key: Callable[[str], Any]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _shown(kind: str, manifest: Described) -> str:
    return "embedding and head" if kind == "embedding" and manifest.model.tie_word_embeddings else kind


def _stores(engine: Path, manifest: Described) -> tuple[Store, ...]:
    """Return what the engine's cache does to keys and values, for each layer. Empty if the cache is float32."""
    dtype, layers = manifest.precision["kv_cache"], range(manifest.model.num_hidden_layers)
    if dtype in KV_BITS:
        scales = _scales(load_graph(engine))
        pairs = [(LayerValue("past_key", layer), LayerValue("past_value", layer)) for layer in layers]
        return tuple(_integers(scales[key], scales[value], KV_BITS[dtype]) for key, value in pairs)
    halves = {"fp16": torch.float16, "bf16": torch.bfloat16}
    return (_floats(halves[dtype]),) * len(layers) if dtype in halves else ()


def _floats(dtype: torch.dtype) -> Store:
    return lambda keys, values: (keys.to(dtype).float(), values.to(dtype).float())


def _integers(key_scale: torch.Tensor, value_scale: torch.Tensor, bits: int) -> Store:
    """Round keys and values [B, K, T, d] as the codes of `passes/quantize_kv_cache.py` do."""
    low = -(1 << (bits - 1))

    def rounded(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.clamp(torch.round(x * (1 / scale)), low, -low - 1) * scale

    return lambda keys, values: (rounded(keys, key_scale), rounded(values, value_scale))


def _scales(model: ir.Model) -> Mapping[LayerValue | None, torch.Tensor]:
    """Return the scales [K, 1, d] in an engine's graph, by the input of the cache."""
    found = {}
    for node in nodes_of(model, "GroupQueryAttention", "com.microsoft"):
        for past, scale in zip(node.inputs[3:5], node.inputs[12:14], strict=True):
            constant = producer(scale)
            assert past is not None and constant is not None
            array = constant.attributes.get_tensor("value").numpy().copy()
            found[layer_value_of(past)] = torch.from_numpy(array)
    return found
