"""Keys and values in another float type than the rest of the model."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder
from l4export.graph.dialect import is_dialect

__all__ = ["CastKVCache"]


class CastKVCache(ir.passes.InPlacePass):
    """Attention and its caches in the float type c, within a model that computes in another.

    y, present = Attention(q, k, v, past)   ->   y', present = Attention(c(q), c(k), c(v), past), y = y' cast back

    k is rounded once, after norm and rotation, so a cache holds exactly c(k) and c(v). No operator of ONNX Runtime's
    CPU provider takes caches of another float type than its other inputs, hence q and y are rounded too; for c =
    float16, `GroupQueryAttention` then computes scores, softmax and sums in float32. Casting whole caches back and
    forth instead would round nothing else, but costs more than attention itself (docs/reference/measurements.md).

    Must run before `FuseAttention`, which leaves the rotation outside its operator, in the model's own type.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        self.dtype = dtype

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Put casts around every `l4.Attention` and retype its caches."""
        nodes = [node for node in model.graph if is_dialect(node, "Attention") and self._differs(node)]
        for node in nodes:
            self._cast(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def _differs(self, node: ir.Node) -> bool:
        return any(cache is not None and cache.dtype != self.dtype for cache in node.inputs[3:5])

    def _cast(self, graph: ir.Graph, node: ir.Node) -> None:
        (past_key, past_value), y = node.inputs[3:5], node.outputs[0]
        assert past_key is not None and past_value is not None and past_key.dtype is not None
        back = int(past_key.dtype)
        scope = str(node.name).rpartition("/")[0]
        before, after = GraphBuilder(scope), GraphBuilder(scope)
        for index, name in enumerate(("q_cast", "k_cast", "v_cast")):
            node.replace_input_with(index, before.op("Cast", node.inputs[index], name=name, to=int(self.dtype)))
        graph.insert_before(node, before.nodes)
        readers = list(y.uses())
        cast = after.op("Cast", y, name="y_cast", to=back)
        for reader, index in readers:
            reader.replace_input_with(index, cast)
        graph.insert_after(node, after.nodes)
        for cache in (past_key, past_value, *node.outputs[1:]):
            cache.type = ir.TensorType(self.dtype)
