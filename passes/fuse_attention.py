"""`RotaryEmbedding` + `l4.Attention` -> `com.microsoft.GroupQueryAttention`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, remove_unused_initializers, replace_node
from l4export.graph.conditions import require_dialect
from l4export.graph.dialect import DOMAIN, NO_LIMIT, is_dialect
from l4export.graph.matching import attention_nodes, nodes_of, producer, qk_norm, rotation

__all__ = ["FuseAttention", "can_fuse"]

_LONGEST_TABLE = 131072
"""Slots in a rotation table: 64 MiB of cos and sin at a head width of 128."""

_MASKED = {ir.DataType.FLOAT: -1e30, ir.DataType.FLOAT16: -6e4}
"""Added to the score of a key in another chunk: exp(score + this) is 0 beside the token's own key, never NaN."""


class FuseAttention(ir.passes.InPlacePass):
    """One operator for rotation, cache update, masking and attention.

    * Rotation: `do_rotary=1, rotary_interleaved=1` with tables cos, sin [slots, d/2] of slot * inv_freq, the product
      in float32 as transformers takes it; `slots` is `max_context`, or the chunk size of a layer whose cache holds one
      chunk. Beyond 131072 slots a table would weigh more than it saves: the `RotaryEmbedding` nodes then stay, with
      angles computed for the tokens of each call.
    * Lengths: seqlens_k int32 [B] = past_length + new_length - 1, total_sequence_length int32 [] = total_length.
    * Chunks: `attention_bias` [B, 1, S, total], 0 where floor(query / C) = floor(key / C), of positions, and hugely
      negative elsewhere, built once per chunk size C. A chunk that is no shorter than `max_context` needs none.

    The operator takes head widths that are multiples of 16, of 8 where nothing is rotated; a layer with another width
    keeps its `l4.Attention`, and the body of that function runs.

    Afterwards the operator refuses a call with several rows, several tokens and a cache that is not empty.

    Raises:
        onnx_ir.passes.PreconditionError: when the dialect is inlined already, the graph takes sequences beyond
            `max_context`, q is rotated and k is not, a rotation is not over adjacent pairs, its angles are not an
            `l4.RotaryAngles` of the layer's slots, or a QK norm still follows a rotation.
    """

    def __init__(self, max_context: int) -> None:
        super().__init__()
        self.max_context = max_context

    def requires(self, model: ir.Model) -> None:
        """No sequence is longer than a table, and every attention can be fused."""
        require_dialect(model)
        for count in nodes_of(model, "SequenceLengths", DOMAIN):
            if count.attributes.get_int("max_context", NO_LIMIT) > self.max_context:
                raise ir.passes.PreconditionError(f"{count.name}: run LimitContext({self.max_context}) first")
        for node in _fusable_nodes(model):
            for norm in map(qk_norm, node.inputs[:2]):
                if norm is not None and rotation(norm.inputs[0]) is not None:
                    raise ir.passes.PreconditionError(f"{node.name}: run MoveQKNormBeforeRotary first")
            _Rotation.of(node)
            _lengths(node)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every `l4.Attention` whose head width the operator takes."""
        nodes = _fusable_nodes(model)
        shared = _Shared(model.graph, self.max_context)
        for node in nodes:
            _fuse(model.graph, node, shared)
        if nodes:
            model.opset_imports["com.microsoft"] = 1
            remove_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(nodes))


@dataclass(frozen=True)
class _Rotation:
    """The rotations of one layer's q and k."""

    q: ir.Node
    k: ir.Node
    inv_freq: ir.Value

    @staticmethod
    def of(node: ir.Node) -> _Rotation | None:
        q, k = rotation(node.inputs[0]), rotation(node.inputs[1])
        if q is None and k is None:
            return None
        if q is None or k is None or q.inputs[1:] != k.inputs[1:]:
            raise ir.passes.PreconditionError(f"{node.name}: q and k must be rotated by the same angles")
        if any(rotary.attributes.get_int("interleaved", 0) != 1 for rotary in (q, k)):
            raise ir.passes.PreconditionError(f"{node.name}: rotation must be over adjacent pairs (interleaved=1)")
        angles = _angles(q.inputs[1], 0)
        if angles is None or angles.inputs[0] is not node.inputs[5] or angles is not _angles(q.inputs[2], 1):
            raise ir.passes.PreconditionError(f"{node.name}: angles must be l4.RotaryAngles of the layer's slots")
        inv_freq = angles.inputs[1]
        if inv_freq is None or inv_freq.const_value is None:
            raise ir.passes.PreconditionError(f"{node.name}: inv_freq must be an initializer")
        return _Rotation(q, k, inv_freq)


class _Shared:
    """Values that the fused layers have in common, each built on first use, before the layer that asks."""

    def __init__(self, graph: ir.Graph, max_context: int) -> None:
        self.graph = graph
        self.max_context = max_context
        self._made: dict[object, Sequence[ir.Value]] = {}

    def slots(self, node: ir.Node) -> int:
        """How many slots the layer's cache may have."""
        chunk = _lengths(node).attributes.get_int("chunk_size", self.max_context)
        return min(chunk, self.max_context)

    def lengths(self, node: ir.Node) -> Sequence[ir.Value]:
        """seqlens_k int32 [B] and total_sequence_length int32 []."""
        past_length, new_length, total_length = _lengths(node).outputs

        def make(b: GraphBuilder) -> Sequence[ir.Value]:
            length = b.op("Add", past_length, new_length, name="length")
            last = b.op("Sub", length, b.constant(1, "one"), name="last_slot")
            seqlens_k = b.op("Cast", last, to=int(ir.DataType.INT32), name="seqlens_k")
            total = b.op("Cast", b.op("Squeeze", total_length), to=int(ir.DataType.INT32), name="total_sequence_length")
            return seqlens_k, total

        return self._once(("lengths", past_length), _scope(node), node, make)

    def tables(self, inv_freq: ir.Value, dtype: ir.DataType, node: ir.Node) -> Sequence[ir.Value]:
        """cos and sin [slots, d/2]."""
        rows = self.slots(node)

        def make(b: GraphBuilder) -> Sequence[ir.Value]:
            assert inv_freq.const_value is not None
            slots = np.arange(rows, dtype=np.float32)
            angles = np.multiply.outer(slots, inv_freq.const_value.numpy()).astype(np.float64)
            cos, sin = (f(angles).astype(dtype.numpy()) for f in (np.cos, np.sin))
            return b.constant(cos, "cos_cache"), b.constant(sin, "sin_cache")

        return self._once((rows, inv_freq), _scope(node), node, make)

    def chunk_bias(self, chunk: int, dtype: ir.DataType, node: ir.Node) -> ir.Value:
        """attention_bias [B, 1, S, total]."""
        slots, cache_start = node.inputs[5], node.inputs[8]
        total_length = _lengths(node).outputs[2]

        def make(b: GraphBuilder) -> Sequence[ir.Value]:
            size = b.constant(chunk, "chunk_size")
            start = b.op("Unsqueeze", cache_start, b.constant([1, 2, 3], "start_axes"), name="start")
            total = b.op("Squeeze", total_length, name="total")
            keys = b.op("Range", b.constant(0, "zero"), total, b.constant(1, "one"), name="keys")
            queries = b.op("Unsqueeze", slots, b.constant([1, 3], "query_axes"), name="queries")
            query_chunk = b.op("Div", b.op("Add", queries, start), size, name="query_chunk")
            key_chunk = b.op("Div", b.op("Add", keys, start), size, name="key_chunk")
            same = b.op("Equal", query_chunk, key_chunk, name="same_chunk")
            seen = b.constant(np.zeros((), dtype=dtype.numpy()), "seen")
            masked = b.constant(np.asarray(_MASKED[dtype], dtype=dtype.numpy()), "masked")
            return (b.op("Where", same, seen, masked, name="attention_bias"),)

        return self._once(("chunk", chunk), f"/attention/{chunk}", node, make)[0]

    def _once(
        self, key: object, scope: str, node: ir.Node, make: Callable[[GraphBuilder], Sequence[ir.Value]]
    ) -> Sequence[ir.Value]:
        if key not in self._made:
            b = GraphBuilder(scope)
            self._made[key] = make(b)
            for value in b.initializers:
                self.graph.register_initializer(value)
            self.graph.insert_before(node, b.nodes)
        return self._made[key]


def _fuse(graph: ir.Graph, node: ir.Node, shared: _Shared) -> None:
    q, k, v, past_key, past_value = node.inputs[:5]
    assert past_key is not None and past_key.dtype is not None
    chunk = node.attributes.get_int("chunk_size")
    rotary = _Rotation.of(node) if shared.slots(node) <= _LONGEST_TABLE else None
    seqlens_k, total = shared.lengths(node)
    cos, sin = shared.tables(rotary.inv_freq, past_key.dtype, node) if rotary else (None, None)
    bias = None if chunk >= shared.max_context else shared.chunk_bias(chunk, past_key.dtype, node)
    b = GraphBuilder.beside(node)
    outputs = b.ops(
        "GroupQueryAttention",
        *(rotary.q.inputs[0] if rotary else q, rotary.k.inputs[0] if rotary else k, v),
        *(past_key, past_value, seqlens_k, total, cos, sin, None, bias),
        outputs=3,
        domain="com.microsoft",
        num_heads=node.attributes.get_int("num_heads"),
        kv_num_heads=node.attributes.get_int("kv_num_heads"),
        do_rotary=int(rotary is not None),
        rotary_interleaved=int(rotary is not None),
    )
    replace_node(graph, node, b, outputs)


def can_fuse(attention: ir.Node) -> bool:
    """Whether `GroupQueryAttention` takes the head width of an `l4.Attention`."""
    past_key = attention.inputs[3]
    assert past_key is not None and past_key.shape is not None
    head_dim = past_key.shape[3]
    rotated = any(rotation(value) is not None for value in attention.inputs[:2])
    return isinstance(head_dim, int) and head_dim % (16 if rotated else 8) == 0


def _fusable_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in attention_nodes(model) if can_fuse(node)]


def _angles(value: ir.Value | None, output: int) -> ir.Node | None:
    """The `l4.RotaryAngles` whose output 0, cos, or 1, sin, is `value`, through a cast."""
    cast = producer(value, ("Cast", ""))
    value = cast.inputs[0] if cast else value
    node = producer(value, ("RotaryAngles", DOMAIN))
    return node if node is not None and value is node.outputs[output] else None


def _lengths(node: ir.Node) -> ir.Node:
    """The node that counts the layer's slots; its outputs are past_length, new_length and total_length."""
    count = producer(node.inputs[6], ("SequenceLengths", DOMAIN), ("ChunkLengths", DOMAIN))
    if count is None:
        raise ir.passes.PreconditionError(
            f"{node.name}: past_length must come from l4.SequenceLengths or l4.ChunkLengths"
        )
    return count


def _scope(node: ir.Node) -> str:
    return "/attention/chunk" if is_dialect(_lengths(node), "ChunkLengths") else "/attention"
