"""A decoder cut at its layers: several engines, run one after the other, where one would be too large to compile.

The first part takes `input_ids` and hands on `hidden_states.{n}`, [B, S, D] in the compute dtype, which layer n reads.
The next part takes it, and so on; the last gives `logits`. Each part has the caches of its own layers, under the names
that they have in the whole, and works out lengths, positions and masks again from the same small inputs. A weight is in
one part alone, except an embedding that is also the head: the first part and the last are compiled with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from l4export.errors import InputError
from l4export.graph.builder import extract_part
from l4export.graph.contents import LayerValue, is_cache, layer_value_of, layer_values
from l4export.targets.target import LayerRange
from l4export.targets.tensorrt.compile import compile_bytes

__all__ = ["constant_bytes", "cut_decoder", "cut_layers", "layer_ranges", "part_names"]


def layer_ranges(graph: ir.Graph, budget: int | None) -> tuple[LayerRange, ...]:
    """Return the fewest ranges of a decoder's layers of which each compiles within `budget` bytes; None: one range.

    Reads no weights.

    Raises:
        InputError: a layer does not fit by itself, with the embedding or the head if it is the first or the last.
    """
    layers = 1 + max(held.layer for held in layer_values(graph))
    if budget is None or compile_bytes(constant_bytes(graph)) <= budget:
        return ((0, layers),)
    ranges: list[LayerRange] = []
    weights = 0
    for layer in range(layers):
        own = constant_bytes(cut_layers(graph, (layer, layer + 1)))
        if (needed := compile_bytes(own)) > budget:
            raise InputError(f"--memory-budget {budget:,}: to compile layer {layer} takes {needed:,} bytes; raise it")
        if ranges and compile_bytes(weights + own) <= budget:
            ranges[-1], weights = (ranges[-1][0], layer + 1), weights + own
        else:
            ranges, weights = [*ranges, (layer, layer + 1)], own
    return tuple(ranges)


def part_names(ranges: Sequence[LayerRange], stem: str) -> list[str]:
    """Return `decoder-00001-of-00002` and so on; a single part has the decoder's own name."""
    if len(ranges) == 1:
        return [stem]
    return [f"{stem}-{number:05d}-of-{len(ranges):05d}" for number in range(1, len(ranges) + 1)]


def cut_decoder(model: ir.Model, ranges: Sequence[LayerRange]) -> list[ir.Model]:
    """Return each part as a model of its own; a single part is the model itself."""
    if len(ranges) == 1:
        return [model]
    return [
        ir.Model(
            cut_layers(model.graph, layers),
            ir_version=model.ir_version,
            producer_name=model.producer_name,
            producer_version=model.producer_version,
        )
        for layers in ranges
    ]


def constant_bytes(graph: ir.Graph) -> int:
    """Bytes of a graph's constants."""
    return sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)


def cut_layers(graph: ir.Graph, layers: LayerRange) -> ir.Graph:
    """The part of a lowered decoder with caches in place that holds `layers`; weights are shared with it, not copied.

    Its inputs and outputs are those of the whole decoder that it uses, in the same order, except that the hidden states
    come first: `hidden_states.{start}` replaces `input_ids`, and `hidden_states.{stop}` replaces `logits`.
    """
    start, stop = layers
    values = layer_values(graph)
    taken = [values[_read_by(start)]] if start else []
    logits = next(value for value in graph.outputs if value.name == "logits")
    given = values[_read_by(stop)] if LayerValue("present_key", stop) in values else logits
    presents = [value for value in graph.outputs if _cached_layer(value) in range(start, stop)]
    part = extract_part(graph, [*taken, *graph.inputs], [given, *presents])
    _use_own_caches(part, range(start, stop))
    part.inputs[:] = [value for value in part.inputs if value.uses()]
    for value, layer in ((part.inputs[0], start), (part.outputs[0], stop)):
        if layer_value_of(value) == _read_by(layer):
            value.name = f"hidden_states.{layer}"
    return part


def _use_own_caches(part: ir.Graph, layers: range) -> None:
    """Masks take the number of slots from the first layer that has so many; any other with as many will do."""
    caches = [value for value in part.inputs if is_cache(value)]
    own = {str(value.shape): value for value in caches if _cached_layer(value) in layers}
    for value in caches:
        if _cached_layer(value) not in layers and value.uses():
            assert all(use.node.op_type == "Shape" for use in value.uses())
            value.replace_all_uses_with(own[str(value.shape)])


def _cached_layer(value: ir.Value) -> int | None:
    """Return the layer whose cache a value is; None for any other value."""
    held = layer_value_of(value)
    return held.layer if held is not None and is_cache(value) else None


def _read_by(layer: int) -> LayerValue:
    """The hidden states that a layer reads, unless it is the first."""
    return LayerValue("residual", layer - 1)
