"""`total_sequence_length` of attention, from shapes alone."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder
from l4export.graph.matching import attention_nodes, nodes_of
from l4export.passes.fuse_attention import can_fuse

__all__ = ["SetTotalToCapacity"]

_PAST_KEY, _TOTAL = 3, 6
"""Inputs of GroupQueryAttention."""


class SetTotalToCapacity(ir.passes.InPlacePass):
    """Gives `GroupQueryAttention` the slots of its cache as the total length, instead of the longest row's.

        total_sequence_length int32 [] = Shape(past_key)[2]

    The operator reads it in the host's memory, and takes it for the number of scores at most; which slots a row
    attends to is said by `seqlens_k`. Computed from the mask it goes from the device to the host in every call, and
    was then read before it was there. From a shape it needs no copy and stays what it is for as long as a session.

    Afterwards the operator refuses several rows with several tokens each also where the cache is empty, unless they
    fill it: it no longer sees that they are the first. Rows are then fed in turns.

    Raises:
        onnx_ir.passes.PreconditionError: attention is not fused, or a cache grows.
    """

    def requires(self, model: ir.Model) -> None:
        """Attention is fused, and its caches stay in place."""
        for node in filter(can_fuse, attention_nodes(model)):
            raise ir.passes.PreconditionError(f"{node.name}: run FuseAttention first")
        for node in nodes_of(model, "GroupQueryAttention", "com.microsoft"):
            if _slots(node) in ("past", "present"):
                raise ir.passes.PreconditionError(f'{node.name}: its cache grows; run LayOutKVCache("static") first')

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the total of every attention; those whose caches have one size share it."""
        made: dict[object, ir.Value] = {}
        for node in nodes_of(model, "GroupQueryAttention", "com.microsoft"):
            if _is_from_shape(node.inputs[_TOTAL]):
                continue
            slots = _slots(node)
            if slots not in made:
                b = GraphBuilder(f"/attention/{slots}")
                shape = b.op("Shape", node.inputs[_PAST_KEY], start=2, end=3, name="slots")
                count = b.op("Squeeze", shape, name="count")
                made[slots] = b.op("Cast", count, to=int(ir.DataType.INT32), name="total_sequence_length")
                model.graph.insert_before(node, b.nodes)
            node.replace_input_with(_TOTAL, made[slots])
        return ir.passes.PassResult(model, modified=bool(made))


def _slots(node: ir.Node) -> object:
    """The size of the slot dimension of the cache: its name, or its number."""
    past_key = node.inputs[_PAST_KEY]
    assert past_key is not None and past_key.shape is not None
    dim = past_key.shape[2]
    return dim if isinstance(dim, int) else dim.value


def _is_from_shape(total: ir.Value | None) -> bool:
    """Whether it is what this pass makes."""
    for op_type in ("Cast", "Squeeze", "Shape"):
        maker = None if total is None else total.producer()
        if maker is None or maker.op_type != op_type:
            return False
        total = maker.inputs[0]
    return True
