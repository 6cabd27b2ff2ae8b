"""Caches of a size that is known when the engine is built."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.contents import is_cache
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of

__all__ = ["FixCacheCapacity"]


class FixCacheCapacity(ir.passes.InPlacePass):
    """Gives every cache its number of slots: `max_context`, or one chunk where the cache holds no more.

    TensorRT updates a cache in place only if its slots do not depend on the call. A session then has the capacity that
    the engine was built with, no smaller one.

    Raises:
        onnx_ir.passes.PreconditionError: a cache grows, or holds one chunk and the graph no longer says of how many
            tokens.
    """

    def __init__(self, max_context: int) -> None:
        super().__init__()
        self.max_context = max_context

    def requires(self, model: ir.Model) -> None:
        """Every cache has a slot dimension whose size is known."""
        for name, slots in ((value.name, slots) for value, slots in _slots(model)):
            if slots in ("past", "present"):
                raise ir.passes.PreconditionError(f'{name}: the cache grows; run LayOutKVCache("static") first')
            if slots == "chunk_capacity" and not nodes_of(model, "ChunkLengths", DOMAIN):
                raise ir.passes.PreconditionError(f"{name}: no chunk size is left; run before InlineDialect")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the name of each cache's slot dimension by its number."""
        chunks = [node.attributes.get_int("chunk_size") for node in nodes_of(model, "ChunkLengths", DOMAIN)]
        capacities = {"capacity": self.max_context, "chunk_capacity": min([self.max_context, *chunks])}
        named = [(value, capacities[slots]) for value, slots in _slots(model) if slots in capacities]
        for value, slots in named:
            assert value.shape is not None
            value.shape = ir.Shape([*value.shape[:2], slots, value.shape[3]])
        return ir.passes.PassResult(model, modified=bool(named))


def _slots(model: ir.Model) -> list[tuple[ir.Value, str]]:
    """Every cache with the size of its slot dimension."""
    caches = filter(is_cache, (*model.graph.inputs, *model.graph.outputs))
    return [(value, str(value.shape[2])) for value in caches if value.shape is not None]
