"""`l4.QKNorm` with its sizes and weights as constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, replace_node
from l4export.graph.conditions import require_dialect
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of

__all__ = ["WriteOutQKNorm"]


class WriteOutQKNorm(ir.passes.InPlacePass):
    """y [B, S, h d] = RMSNormalization(x as [B, S, h, d], weights of one [d]), as [B, S, h d].

    The function's own body makes its weights of one anew in every layer, by the type of x, which costs a kernel. And
    `FuseQKNorm` can see in constants what it fuses.

    Args:
        dtype: Of x: what the model computes in.

    Raises:
        onnx_ir.passes.PreconditionError: the dialect is inlined already.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        self.dtype = dtype

    def requires(self, model: ir.Model) -> None:
        """The dialect is there."""
        require_dialect(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the function's calls; those of one width share their weights."""
        nodes, weights = nodes_of(model, "QKNorm", DOMAIN), dict[int, ir.Value]()
        for node in nodes:
            width, heads = (node.attributes.get_int(name) for name in ("head_dim", "num_heads"))
            if width not in weights:
                shared = GraphBuilder("/attention/qk_norm")
                weights[width] = shared.constant(np.ones(width, self.dtype.numpy()), f"ones_{width}")
                model.graph.register_initializer(weights[width])
            b = GraphBuilder(str(node.name))
            by_head = b.op("Reshape", node.inputs[0], b.constant([0, 0, heads, width], "by_head"), name="heads")
            epsilon = node.attributes.get_float("epsilon")
            normed = b.op("RMSNormalization", by_head, weights[width], axis=-1, epsilon=epsilon, name="normed")
            y = b.op("Reshape", normed, b.constant([0, 0, -1], "joined"), name="y")
            replace_node(model.graph, node, b, [y])
        return ir.passes.PassResult(model, modified=bool(nodes))
