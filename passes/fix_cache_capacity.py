"""Caches of a size that is known when the engine is built."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.dialect import is_dialect

__all__ = ["FixCacheCapacity"]


class FixCacheCapacity(ir.passes.InPlacePass):
    """Gives every cache its number of slots: `max_context`, or one chunk where that is shorter and all it holds.

    TensorRT updates a cache in place only if its slots do not depend on the call. A session then has the capacity that
    the engine was built with, no smaller one.
    """

    def __init__(self, max_context: int) -> None:
        super().__init__()
        self.max_context = max_context

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the name of each cache's slot dimension by its number."""
        modified = False
        chunks = [node.attributes.get_int("chunk_size") for node in model.graph if is_dialect(node, "ChunkLengths")]
        capacities = {"capacity": self.max_context, "chunk_capacity": min([self.max_context, *chunks])}
        for value in (*model.graph.inputs, *model.graph.outputs):
            if str(value.name).startswith(("past_key_values.", "present.")) and value.shape is not None:
                slots = capacities.get(str(value.shape[2]))
                if slots is not None:
                    value.shape = ir.Shape([*value.shape[:2], slots, value.shape[3]])
                    modified = True
        return ir.passes.PassResult(model, modified=modified)
