"""Some layers of a decoder, chained as in the whole: a smaller decoder, which shares the weights of the large one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from l4export.graph.builder import remove_unused_initializers
from l4export.graph.contents import LayerValue, is_cache, layer_value_of, layer_values, note

__all__ = ["excerpt_layers"]


def excerpt_layers(model: ir.Model, layers: Sequence[int]) -> ir.Model:
    """The decoder of the given layers alone, from the embedding to the head; the first layer must be among them.

    What a layer hands on is a sum of two values, whose node may also hold the norm that reads it. So the sum before a
    layer b that now follows a layer a takes its two values from the sum behind a:

        residual[b - 1] = u[b - 1] + v[b - 1]   becomes   u[a] + v[a]

    Caches and notes are numbered from 0. Constants are shared with `model`, which stays as it is.
    """
    assert list(layers) == sorted({0, *layers}), layers
    excerpt = model.clone()
    graph = excerpt.graph
    values = layer_values(graph)
    count = 1 + max(held.layer for held in values)
    for before, layer in itertools.pairwise([*layers, count]):
        if layer != before + 1:
            joint = values[LayerValue("residual", layer - 1)]
            _take_sum(joint, values[LayerValue("residual", before)])
            note(joint, LayerValue("residual", before))
    graph.outputs[:] = [value for value in graph.outputs if not is_cache(value) or _layer(value) in layers]
    common.RemoveUnusedNodesPass()(excerpt)
    remove_unused_initializers(graph)
    dropped = [value for value in graph.inputs if is_cache(value) and _layer(value) not in layers]
    assert not any(value.uses() for value in dropped), "a layer reads the cache of another"
    graph.inputs[:] = [value for value in graph.inputs if value not in dropped]
    _renumber(graph, layers)
    return excerpt


def _take_sum(of: ir.Value, other: ir.Value) -> None:
    """Let the node that makes one residual stream add up what the node of another adds up."""
    node, terms = of.producer(), _terms(other)
    assert node is not None
    for index, term in zip(_terms(of), terms.values(), strict=True):
        node.replace_input_with(index, term)


def _terms(residual: ir.Value) -> dict[int, ir.Value]:
    """The inputs of a residual stream's node that are no weights, by their indices."""
    node = residual.producer()
    assert node is not None
    return {index: value for index, value in enumerate(node.inputs) if value is not None and not value.is_initializer()}


def _layer(value: ir.Value) -> int:
    held = layer_value_of(value)
    assert held is not None
    return held.layer


def _renumber(graph: ir.Graph, layers: Sequence[int]) -> None:
    numbers = {layer: number for number, layer in enumerate(layers)}
    for held, value in layer_values(graph).items():
        note(value, LayerValue(held.role, numbers[held.layer]))
        if is_cache(value):
            value.name = str(value.name).replace(f".{held.layer}.", f".{numbers[held.layer]}.")
