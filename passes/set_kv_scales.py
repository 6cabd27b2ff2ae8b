"""Scales of a quantised KV cache, once they have been measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from l4export.graph.builder import GraphBuilder, own_name

__all__ = ["SetKVScales"]

_SCALES = {3: 12, 4: 13}
"""Inputs of GroupQueryAttention: a past cache, and its scales."""


class SetKVScales(ir.passes.InPlacePass):
    """Gives every attention operator that `QuantizeKVCache` has rewritten the scales of its own caches.

    A build plans its graph before the scales are known, because they are measured with the weights that it writes.

    Args:
        scales: float32 [K, 1, d] for each cache, by the name of its input, such as `past_key_values.0.key`
            (`l4export.calibration.kv_scales`).
    """

    def __init__(self, scales: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__()
        self.scales = scales

    def requires(self, model: ir.Model) -> None:
        """Some attention operator has a quantised cache."""
        if not _quantized(model):
            raise ir.passes.PreconditionError("no KV cache is quantised; run QuantizeKVCache first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Put constants of its own before every operator that has other scales."""
        changed = [self._set(model.graph, node) for node in _quantized(model)]
        return ir.passes.PassResult(model, modified=any(changed))

    def _set(self, graph: ir.Graph, node: ir.Node) -> bool:
        b = GraphBuilder.beside(node)
        for cache, scale in _SCALES.items():
            past, old = node.inputs[cache], node.inputs[scale]
            assert past is not None and old is not None
            maker, values = old.producer(), self.scales[str(past.name)]
            assert maker is not None
            if np.array_equal(maker.attributes.get_tensor("value").numpy(), values):
                continue
            node.replace_input_with(scale, b.op("Constant", name=own_name(maker), value=ir.tensor(values)))
            if not old.uses():
                graph.remove(maker, safe=True)
        graph.insert_before(node, b.nodes)
        return bool(b.nodes)


def _quantized(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if "kv_cache_bit_width" in node.attributes]
