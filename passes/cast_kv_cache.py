"""Keys and values in another float type than the rest of the model."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder
from l4export.graph.conditions import require_dialect
from l4export.graph.contents import is_cache
from l4export.graph.matching import attention_nodes, nodes_of

__all__ = ["CastKVCache"]


class CastKVCache(ir.passes.InPlacePass):
    """Attention and its caches in the float type c, within a model that computes in another.

    y, present = Attention(q, k, v, past)   ->   y', present = Attention(c(q), c(k), c(v), past), y = y' cast back

    k is rounded once, after norm and rotation, so a cache holds exactly c(k) and c(v). No operator of ONNX Runtime's
    CPU provider takes caches of another float type than its other inputs, hence q and y are rounded too; for c =
    float16, `GroupQueryAttention` then computes scores, softmax and sums in float32. Casting whole caches back and
    forth instead would round nothing else, but costs more than attention itself (docs/reference/measurements.md).

    `FuseAttention` comes after it and leaves the rotation outside its operator, in the model's own type.

    Raises:
        onnx_ir.passes.PreconditionError: attention is fused or inlined already.
        onnx_ir.passes.PostconditionError: a cache has another type, because no `l4.Attention` has it.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        self.dtype = dtype

    def requires(self, model: ir.Model) -> None:
        """Check that attention is the dialect's where caches have another type."""
        require_dialect(model)
        for node in filter(self._differs, nodes_of(model, "GroupQueryAttention", "com.microsoft")):
            raise ir.passes.PreconditionError(f"{node.name}: run CastKVCache before FuseAttention")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Put casts around every `l4.Attention` and retype its caches."""
        nodes = [node for node in attention_nodes(model) if self._differs(node)]
        for node in nodes:
            self._cast(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        """Every cache has the type."""
        for value in filter(is_cache, (*model.graph.inputs, *model.graph.outputs)):
            if value.dtype != self.dtype:
                raise ir.passes.PostconditionError(f"{value.name} is {value.dtype}, not {self.dtype}")

    def _differs(self, node: ir.Node) -> bool:
        return any(cache is not None and cache.dtype != self.dtype for cache in node.inputs[3:5])

    def _cast(self, graph: ir.Graph, node: ir.Node) -> None:
        (past_key, past_value), y = node.inputs[3:5], node.outputs[0]
        assert past_key is not None and past_value is not None and past_key.dtype is not None
        back = int(past_key.dtype)
        before, after = GraphBuilder.beside(node), GraphBuilder.beside(node)
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
