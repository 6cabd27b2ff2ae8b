"""`l4.Attention` -> `TensorScatter` into caches that stay in place, and standard `Attention` under a boolean mask."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, replace_node
from l4export.graph.conditions import require_dialect
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import attention_nodes

__all__ = ["LowerAttention"]


class LowerAttention(ir.passes.InPlacePass):
    """The form of attention that ONNX Runtime and TensorRT both take and both compute in the same way.

    With caches [B, K, T, d] whose slots never move:

        present   = TensorScatter(past, split(x), past_length; axis -2, linear)     (x is k or v, split to [B, K, S, d])
        mask      = key slot <= query slot, and both in one chunk                   bool [B, 1, S, T]
        y         = Attention(split(q), present_key, present_value, mask; is_causal 0)

    One mask for each chunk size and kind of cache, made where it is first needed. The caches are inputs and outputs of
    the graph with nothing between them and the scatter, which is how a runtime may use one buffer for both. Neither
    lengths (`nonpad_kv_seqlen`) nor causality are left to the operator: TensorRT ignores the one and counts the other
    from the first slot.

    Raises:
        onnx_ir.passes.PreconditionError: when the dialect is inlined already, or a cache does not stay in place.
    """

    def requires(self, model: ir.Model) -> None:
        """Every cache has as many slots afterwards as before."""
        require_dialect(model)
        for node in attention_nodes(model):
            past, present = node.inputs[3], node.outputs[1]
            assert past is not None and past.shape is not None and present.shape is not None
            if past.shape[2] != present.shape[2]:
                raise ir.passes.PreconditionError(
                    f'{node.name}: caches must stay in place; they grow. Run LayOutKVCache("static") first'
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every `l4.Attention`."""
        nodes = attention_nodes(model)
        masks: dict[tuple[int, ir.Value | None], ir.Value] = {}
        names: set[str] = set()
        for node in nodes:
            key = node.attributes.get_int("chunk_size"), node.inputs[5]
            if key not in masks:
                masks[key] = _mask(model.graph, node, names)
            _rewrite(model.graph, node, masks[key])
        return ir.passes.PassResult(model, modified=bool(nodes))


def _mask(graph: ir.Graph, node: ir.Node, names: set[str]) -> ir.Value:
    """The mask of every layer with this one's chunk size and slots."""
    past_key, slots, cache_start = node.inputs[3], node.inputs[5], node.inputs[8]
    chunk = node.attributes.get_int("chunk_size")
    b = GraphBuilder(scope="/attention", taken=names)
    mask = b.op("ChunkCausalMask", slots, cache_start, past_key, domain=DOMAIN, name="mask", chunk_size=chunk)
    graph.insert_before(node, b.nodes)
    return mask


def _rewrite(graph: ir.Graph, node: ir.Node, mask: ir.Value) -> None:
    q, k, v, past_key, past_value, _, past_length = node.inputs[:7]
    b = GraphBuilder.beside(node)

    def split(x: ir.Value | None, kind: str, heads: str) -> ir.Value:
        return b.op("SplitHeads", x, domain=DOMAIN, name=kind, num_heads=node.attributes.get_int(heads))

    def appended(past: ir.Value | None, x: ir.Value | None, kind: str) -> ir.Value:
        update = split(x, f"new_{kind}", "kv_num_heads")
        return b.op("TensorScatter", past, update, past_length, name=f"{kind}_cache", axis=-2, mode="linear")

    queries = split(q, "queries", "num_heads")
    key, value = appended(past_key, k, "key"), appended(past_value, v, "value")
    heads = b.op("Attention", queries, key, value, mask, name="heads", is_causal=0)
    tokens = b.op("Transpose", heads, perm=[0, 2, 1, 3], name="tokens")
    y = b.op("Reshape", tokens, b.constant([0, 0, -1], "joined_shape"), name="joined")
    replace_node(graph, node, b, [y, key, value])
