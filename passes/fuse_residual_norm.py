"""The addition to the residual stream and the norm that follows, in one operator."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, own_name, take_over
from l4export.graph.matching import nodes_of, producer

__all__ = ["FuseResidualNorm"]


class FuseResidualNorm(ir.passes.InPlacePass):
    """`s = Add(x, y)`, `RMSNormalization(s, w)` -> `com.microsoft.SkipSimplifiedLayerNormalization(x, y, w)`.

        s = x + y        h = s / sqrt(mean(s^2) + epsilon) * w

    One kernel writes h, the first output, and s, the fourth, which the next layer adds to. In float32 the numbers are
    those of the two operators but for the order of a sum. In float16 the operator takes the mean from the unrounded
    sum, and s is rounded as `Add` rounds it.

    Sums are fused whose operands are both computed and have the width of the norm, as all have that a residual stream
    is made of; an operand that is a constant may be broadcast and stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every norm over the last axis of a sum."""
        modified = False
        for norm in nodes_of(model, "RMSNormalization"):
            add = producer(norm.inputs[0], ("Add", ""))
            if add is None or norm.attributes.get_int("axis", -1) != -1 or not all(map(_is_computed, add.inputs)):
                continue
            _fuse(model.graph, add, norm)
            modified = True
        if modified:
            model.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=modified)


def _fuse(graph: ir.Graph, add: ir.Node, norm: ir.Node) -> None:
    b = GraphBuilder.beside(norm)
    outputs = b.ops(
        "SkipSimplifiedLayerNormalization",
        *(*add.inputs, norm.inputs[1]),
        outputs=4,
        domain="com.microsoft",
        name=own_name(norm),
        epsilon=norm.attributes.get_float("epsilon", 1e-5),
    )
    outputs[1].name = outputs[2].name = ""  # of training
    graph.insert_before(add, b.nodes)
    for old, new in ((norm.outputs[0], outputs[0]), (add.outputs[0], outputs[3])):
        take_over(new, old)
        new.name = old.name
        old.replace_all_uses_with(new)
    graph.remove([norm, add], safe=True)


def _is_computed(value: ir.Value | None) -> bool:
    maker = None if value is None else value.producer()
    return maker is not None and maker.op_type != "Constant"
