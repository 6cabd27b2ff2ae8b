"""Where keys and values of earlier tokens live, as the decoder's inputs and outputs declare it."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["LAYOUTS", "KVCacheLayout"]

LAYOUTS = ("concat", "static")


class KVCacheLayout(ir.passes.InPlacePass):
    """Declares the cache inputs and outputs of a layout.

    * `concat` (as the reference graph has it): past [B, K, past, d] -> present [B, K, present, d], which is past with
      the new tokens behind it: present = max(past, total).
    * `static`: past and present are both [B, K, capacity, d] and may be one buffer, updated in place; slots from
      `total` on are not read. A client chooses the capacity, up to the engine's `max_context`.

    The computation is the same: appending to a cache that has room leaves its size as it is (see
    `l4.AppendToCache`; `com.microsoft.GroupQueryAttention` works in the same way).

    Raises:
        ValueError: for a layout that is not in `LAYOUTS`.
    """

    def __init__(self, layout: str) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"KV layout {layout!r} is not one of {', '.join(LAYOUTS)}")
        self.layout = layout

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename the slot dimension of every cache."""
        past, present = ("past", "present") if self.layout == "concat" else ("capacity", "capacity")
        modified = False
        for values, prefix, slots in (
            (model.graph.inputs, "past_key_values.", past),
            (model.graph.outputs, "present.", present),
        ):
            for value in values:
                if (value.name or "").startswith(prefix) and value.shape is not None and value.shape[2] != slots:
                    value.shape = ir.Shape([*value.shape[:2], slots, value.shape[3]])
                    modified = True
        return ir.passes.PassResult(model, modified=modified)
