"""Attention that takes queries, keys and values as one tensor, the way their product is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from l4export.graph.builder import GraphBuilder
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of, producer

__all__ = ["AttendToPackedQKV"]


class AttendToPackedQKV(ir.passes.InPlacePass):
    """`GroupQueryAttention(q, k, v)` with [q | k | v] = Split(p)   ->   `GroupQueryAttention(p)`.

    The operator cuts p [B, S, (H + 2K) d] itself, by heads. Where queries are multiplied by their temperature t [B, S],
    the heads of p are multiplied by f [B, S, H + 2K, 1], which is t for queries and 1 for keys and values; f is made
    once for all layers.

        p'  =  Reshape(p, [B, S, H + 2K, d]) * f

    Layers in which something else happens to q, k or v keep their `Split`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every attention that reads the three parts of one `Split`."""
        temperatures = _Temperatures(model.graph)
        modified = False
        for node in nodes_of(model, "GroupQueryAttention", "com.microsoft"):
            temperature = producer(node.inputs[0], ("Temperature", DOMAIN))
            q = temperature.inputs[0] if temperature else node.inputs[0]
            split = _split(q, node)
            if split is None:
                continue
            packed = split.inputs[0]
            assert packed is not None
            if temperature:
                packed = temperatures.applied(packed, temperature, node)
            for index, value in enumerate((packed, None, None)):
                node.replace_input_with(index, value)
            model.graph.remove([*([temperature] if temperature else []), split], safe=True)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


class _Temperatures:
    """Factors for the heads of packed tensors, each made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._factors: dict[object, ir.Value] = {}

    def applied(self, packed: ir.Value, temperature: ir.Node, attention: ir.Node) -> ir.Value:
        """The packed tensor with its queries multiplied, before an attention."""
        heads, kv_heads, width = _sizes(attention)
        factor = self._factor(temperature, attention, heads, kv_heads)
        b = GraphBuilder.beside(temperature)
        by_head = b.op("Reshape", packed, b.constant([0, 0, heads + 2 * kv_heads, width], "by_head"), name="qkv_heads")
        scaled = b.op("Mul", by_head, factor, name="q_temperature")
        joined = b.op("Reshape", scaled, b.constant([0, 0, -1], "joined"), name="qkv")
        self._insert(b, attention)
        return joined

    def _factor(self, temperature: ir.Node, attention: ir.Node, heads: int, kv_heads: int) -> ir.Value:
        """[B, S, H + 2K, 1]."""
        positions, past_key = temperature.inputs[1], attention.inputs[3]
        assert past_key is not None and past_key.dtype is not None
        attributes = {name: attribute.value for name, attribute in temperature.attributes.items()}
        key = (positions, heads, kv_heads, tuple(sorted(attributes.items())))
        if key not in self._factors:
            b = GraphBuilder("/attention/temperature")
            one = b.constant(np.ones((1, 1, 1), past_key.dtype.numpy()), "one")
            factor = b.op("Temperature", one, positions, domain=DOMAIN, name="factor", **attributes)
            column = b.op("Unsqueeze", factor, b.constant([-1], "last"), name="column")
            is_query = b.constant(np.arange(heads + 2 * kv_heads)[:, None] < heads, "is_query")
            self._factors[key] = b.op("Where", is_query, column, one, name="by_head")
            self._insert(b, attention)
        return self._factors[key]

    def _insert(self, b: GraphBuilder, attention: ir.Node) -> None:
        for value in b.initializers:
            self.graph.register_initializer(value)
        self.graph.insert_before(attention, b.nodes)


def _split(q: ir.Value | None, attention: ir.Node) -> ir.Node | None:
    """The `Split` whose parts are q and the attention's keys and values, and nobody else's, cut as it cuts."""
    split = producer(q, ("Split", ""))
    if split is None or [q, *attention.inputs[1:3]] != list(split.outputs):
        return None
    if any(len(part.uses()) != 1 for part in split.outputs) or split.attributes.get_int("axis", 0) != -1:
        return None
    heads, kv_heads, width = _sizes(attention)
    widths = split.inputs[1].const_value if len(split.inputs) > 1 and split.inputs[1] is not None else None
    cut = [] if widths is None else widths.numpy().tolist()
    return split if cut == [heads * width, kv_heads * width, kv_heads * width] else None


def _sizes(attention: ir.Node) -> tuple[int, int, int]:
    """Query heads, key/value heads and head width."""
    past_key = attention.inputs[3]
    assert past_key is not None and past_key.shape is not None
    width = past_key.shape[3]
    assert isinstance(width, int)
    return attention.attributes.get_int("num_heads"), attention.attributes.get_int("kv_num_heads"), width
