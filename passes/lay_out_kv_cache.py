"""Where keys and values of earlier tokens live, as the decoder's inputs and outputs declare it."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder
from l4export.graph.conditions import require_dialect, require_none
from l4export.graph.dialect import DOMAIN, NO_LIMIT
from l4export.graph.matching import attention_nodes, producer, qk_norm, rotation

__all__ = ["LAYOUTS", "LayOutKVCache"]

LAYOUTS = ("concat", "static", "chunked")


class LayOutKVCache(ir.passes.InPlacePass):
    """Decides where the caches keep a token, and declares their inputs and outputs accordingly.

    * `concat` (as the reference graph has it): past [B, K, past, d] -> present [B, K, present, d], which is past with
      the new tokens after it: present = max(past, total).
    * `static`: past and present are both [B, K, capacity, d] and may be one buffer, updated in place; slots from
      `total` on are not read. A client chooses the capacity, up to the engine's `max_context`.
    * `chunked`: `static`, but a layer with attention in chunks of C tokens has a cache of one chunk, [B, K,
      chunk_capacity, d] with min(C, capacity) slots. The token at position p lies in its slot p mod C, so that the
      cache is as good as empty at every boundary: all slots before the query's hold its own chunk, and plain causal
      attention does what the chunk mask did. With `l4.ChunkLengths` in the place of `l4.SequenceLengths`

          past' = min((cache_start + past) mod C, past),  slots' = past' + 0, 1, ..., S - 1,  chunk_size' = NO_LIMIT

      (the minimum is for caches that start within a chunk: their slots count from there). Rotations follow the slots:
      query and key of one chunk keep their distance, hence their score. A call whose new tokens belong to two chunks
      is refused by the graph. Layers that attend to everything keep everything, rotated by their own slots.

    `concat` and `static` compute the same: appending to a cache that has room leaves its size as it is (see
    `l4.AppendToCache`; `com.microsoft.GroupQueryAttention` works in the same way).

    Raises:
        ValueError: for a layout that is not in `LAYOUTS`.
        onnx_ir.passes.PreconditionError: for a graph that has layout `chunked` and should have another one, or whose
            attention is not the dialect's any more.
    """

    def __init__(self, layout: str) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"KV layout {layout!r} is not one of {', '.join(LAYOUTS)}")
        self.layout = layout

    def requires(self, model: ir.Model) -> None:
        """Attention is the dialect's; a chunk's cache cannot become one of the whole sequence again."""
        require_dialect(model)
        require_none(model, "GroupQueryAttention", "com.microsoft", "run LayOutKVCache before FuseAttention")
        require_none(model, "Attention", "", "run LayOutKVCache before LowerAttention")
        if self.layout != "chunked" and any(_holds_one_chunk(node) for node in attention_nodes(model)):
            raise ir.passes.PreconditionError("the caches hold one chunk already; lay them out once")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move chunked layers to caches of one chunk; name the slot dimension of every cache."""
        modified = False
        if self.layout == "chunked":
            local = _ChunkLocal(model.graph)
            for node in attention_nodes(model):
                if node.attributes.get_int("chunk_size") < NO_LIMIT:
                    local.move(node)
                    modified = True
        for node in attention_nodes(model):
            past, present = ("past", "present") if self.layout == "concat" else ("capacity", "capacity")
            if _holds_one_chunk(node):
                past = present = "chunk_capacity"
            modified |= any([_name_slots(value, past) for value in node.inputs[3:5]])
            modified |= any([_name_slots(value, present) for value in node.outputs[1:3]])
        return ir.passes.PassResult(model, modified=modified)


class _ChunkLocal:
    """Lengths, slots and angles that the chunked layers share: made once, next to those of the whole sequence."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._counts: dict[int, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._angles: dict[tuple[int, ir.Value], ir.Value] = {}

    def move(self, node: ir.Node) -> None:
        """Give one attention, and the rotations of its q and k, the slots of its chunk."""
        chunk = node.attributes.get_int("chunk_size")
        slots, past, total = self.counts(node, chunk)
        for rotary in filter(None, (_rotation(value) for value in node.inputs[:2])):
            for i in (1, 2):
                rotary.replace_input_with(i, self.angle(rotary.inputs[i], chunk, slots))
        for i, value in ((5, slots), (6, past), (7, total)):
            node.replace_input_with(i, value)
        node.attributes["chunk_size"] = ir.AttrInt64("chunk_size", NO_LIMIT)

    def counts(self, node: ir.Node, chunk: int) -> tuple[ir.Value, ir.Value, ir.Value]:
        """slots', past' and total' of a chunk size."""
        if chunk not in self._counts:
            whole, lengths = _made_by(node.inputs[5], "Slots"), _made_by(node.inputs[6], "SequenceLengths")
            input_ids, cache_start = whole.inputs[1], node.inputs[8]
            b = GraphBuilder("/chunk")
            past, _, total = b.ops(
                "ChunkLengths",
                *(*lengths.outputs[:2], input_ids, cache_start),
                outputs=3,
                domain=DOMAIN,
                name="lengths",
                chunk_size=chunk,
            )
            slots = b.op("Slots", past, input_ids, domain=DOMAIN, name="slots")
            self.graph.insert_after(whole, b.nodes)
            self._counts[chunk] = slots, past, total
        return self._counts[chunk]

    def angle(self, value: ir.Value | None, chunk: int, slots: ir.Value) -> ir.Value:
        """cos or sin, as `value` is, of the new slots."""
        assert value is not None
        if (chunk, value) not in self._angles:
            b, cast = GraphBuilder("/chunk"), producer(value, ("Cast", ""))
            made_by = cast or _made_by(value, "RotaryAngles")
            name = str(made_by.name).lstrip("/")
            if cast:
                inner = self.angle(cast.inputs[0], chunk, slots)
                self._angles[chunk, value] = b.op("Cast", inner, to=cast.attributes.get_int("to"), name=name)
            else:
                made = b.ops("RotaryAngles", slots, made_by.inputs[1], outputs=2, domain=DOMAIN, name=name)
                self._angles.update({(chunk, old): new for old, new in zip(made_by.outputs, made, strict=True)})
            self.graph.insert_after(made_by, b.nodes)
        return self._angles[chunk, value]


def _holds_one_chunk(attention: ir.Node) -> bool:
    return producer(attention.inputs[6], ("ChunkLengths", DOMAIN)) is not None


def _rotation(value: ir.Value | None) -> ir.Node | None:
    """The rotation of a layer's q or k, before or after its norm."""
    norm = qk_norm(value)
    return rotation(norm.inputs[0] if norm else value)


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node:
    node = producer(value, (op_type, DOMAIN))
    if node is None:
        raise ir.passes.PreconditionError(f"{'' if value is None else value.name}: must come from l4.{op_type}")
    return node


def _name_slots(value: ir.Value | None, slots: str) -> bool:
    """Name the slot dimension of a cache; returns whether it had another name."""
    if value is None or value.shape is None or value.shape[2] == slots:
        return False
    value.shape = ir.Shape([*value.shape[:2], slots, value.shape[3]])
    return True
