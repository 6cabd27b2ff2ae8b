"""Keys and values in 8 or 4 bits, read by the attention operator as they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from l4export.errors import InputError
from l4export.graph.builder import GraphBuilder
from l4export.graph.matching import attention_nodes, nodes_of
from l4export.passes.fuse_attention import can_fuse

__all__ = ["QuantizeKVCache"]

_CODES = {8: ir.DataType.INT8, 4: ir.DataType.UINT8}


class QuantizeKVCache(ir.passes.InPlacePass):
    """Gives `GroupQueryAttention` quantised caches, with one scale for each channel of each key-value head.

    For a key k as the operator caches it, normalised and rotated, and likewise for a value:

        code = clip(round(k * (1 / scale)), -2^(bits-1), 2^(bits-1) - 1)        k' = code * scale

    in float32, rounding halves to even. The operator reads k' everywhere, for the tokens of the call itself too.

    * 8 bits: int8 [B, K, slots, d].
    * 4 bits: uint8 [B, K, slots, d/2]; byte i holds code + 8 of channel 2i in its low half, of 2i + 1 in its high half.

    Every scale is one until `SetKVScales` sets those that were measured. The scales, float32 [K, 1, d], are Constant
    nodes, so a calibration changes the graph and no data file.

    Args:
        bits: 8 or 4.

    Raises:
        InputError: a head width that the operator does not take.
        onnx_ir.passes.PreconditionError: attention is not fused.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def requires(self, model: ir.Model) -> None:
        """Every attention that can be fused is."""
        for node in filter(can_fuse, attention_nodes(model)):
            raise ir.passes.PreconditionError(f"{node.name}: run FuseAttention first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Retype every cache and hand its scales to the operator that reads it."""
        for node in attention_nodes(model):
            raise InputError(
                f"--kv-dtype int{self.bits}: ONNX Runtime's GroupQueryAttention takes no heads as wide as those of "
                f"{node.name}; use fp32 or fp16"
            )
        fused = nodes_of(model, "GroupQueryAttention", "com.microsoft")
        nodes = [node for node in fused if "kv_cache_bit_width" not in node.attributes]
        for node in nodes:
            self._quantize(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def _quantize(self, graph: ir.Graph, node: ir.Node) -> None:
        b = GraphBuilder.beside(node)
        pasts = node.inputs[3:5]
        node.resize_inputs(14)
        for index, (past, name) in enumerate(zip(pasts, ("k_scale", "v_scale"), strict=True)):
            assert past is not None
            scale = b.op("Constant", name=name, value=ir.tensor(_ones(past)))
            node.replace_input_with(12 + index, scale)
        graph.insert_before(node, b.nodes)
        for cache in (*pasts, *node.outputs[1:3]):
            assert cache is not None
            self._retype(cache)
        node.attributes.update(
            (name, ir.Attr(name, kind, value))
            for name, kind, value in (
                ("k_quant_type", ir.AttributeType.STRING, "PER_CHANNEL"),
                ("v_quant_type", ir.AttributeType.STRING, "PER_CHANNEL"),
                ("kv_cache_bit_width", ir.AttributeType.INT, self.bits),
            )
        )

    def _retype(self, cache: ir.Value) -> None:
        assert cache.shape is not None
        *outer, width = cache.shape
        assert isinstance(width, int)
        cache.type = ir.TensorType(_CODES[self.bits])
        cache.shape = ir.Shape([*outer, width * self.bits // 8])


def _ones(past: ir.Value) -> np.ndarray:
    """A scale of one for each channel of a float cache [B, K, slots, d]: float32 [K, 1, d]."""
    assert past.shape is not None
    _, heads, _, width = past.shape
    assert isinstance(heads, int) and isinstance(width, int)
    return np.ones((heads, 1, width), dtype=np.float32)
