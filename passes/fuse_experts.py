"""`l4.MoE` -> `com.microsoft.MoE`: only the chosen experts are evaluated."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, remove_unused_initializers, replace_node
from l4export.graph.conditions import require_constant_experts, require_dialect
from l4export.graph.contents import relaid
from l4export.graph.matching import moe_nodes
from l4export.weights.recipes import Interleave, Recipe, Slice, Transpose, as_recipe

__all__ = ["FuseExperts"]

_NEVER = -1e4
"""Logit of an expert that a row must not choose; exp(-1e4) is 0 in every float type, and float16 can hold it."""


class FuseExperts(ir.passes.InPlacePass):
    """Moves the router's score to where ONNX Runtime's operator can take it, and the weights to its order.

    Llama 4 scales the expert's *input*: y = sum_j f_{e_j}(s_j x), s_j = sigmoid(z_{e_j}), e_1..e_k the top k of z.
    `com.microsoft.MoE` scales the *output*: y = sum_j w_j f_{e_j}(x). The two agree when every row it sees has one
    expert, with weight exactly 1 (`k=1, normalize_routing_weights=1`), and the row is scaled beforehand:

    * k = 1: rows x sigmoid(max z), router_probs z.
    * k > 1: k rows a token, row j being s_j x, with router_probs 0 at e_j and -1e4 elsewhere; the k results are added.

    Weights: fc1 [E, 2I, D] has gate and up rows in turn (`swiglu_fusion=1`, the only order the CPU kernel has), made
    from gate_up [E, D, 2I] = [gate | up]; fc2 [E, D, I] is down [E, I, D] transposed.

    Raises:
        onnx_ir.passes.PreconditionError: when the dialect is inlined already, or an expert weight is not an
            initializer.
    """

    def requires(self, model: ir.Model) -> None:
        """The dialect is there, and expert weights are initializers."""
        require_dialect(model)
        require_constant_experts(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every `l4.MoE`."""
        nodes = moe_nodes(model)
        for node in nodes:
            _fuse(model.graph, node)
        if nodes:
            model.opset_imports["com.microsoft"] = 1
            remove_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _fuse(graph: ir.Graph, node: ir.Node) -> None:
    x, logits, gate_up, down = node.inputs
    assert x is not None and logits is not None and gate_up is not None and down is not None
    k = node.attributes.get_int("k")
    b = GraphBuilder(scope=str(node.name))
    fc1 = b.initializer(_fc1(_weight(gate_up)), f"{gate_up.name}.fc1", relaid(gate_up, "interleaved"))
    fc2 = b.initializer(Transpose(_weight(down), (0, 2, 1)), f"{down.name}.fc2", relaid(down, "transposed"))
    rows, probs, results_shape = _one_expert_rows(b, x, logits, k, fc1)
    y = b.op(
        "MoE",
        *(rows, probs, fc1, None, fc2),
        domain="com.microsoft",
        name="MoE",
        k=1,
        normalize_routing_weights=1,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
    )
    if results_shape is not None:
        choices = b.op("Reshape", y, results_shape, name="choices")
        y = b.op("ReduceSum", choices, b.constant([2], "choice_axis"), keepdims=0, name="sum")
    replace_node(graph, node, b, [y])


def _one_expert_rows(
    b: GraphBuilder, x: ir.Value, logits: ir.Value, k: int, fc1: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Scaled rows, their router logits [rows, E], and for k > 1 the shape [B, S, k, D] of the results."""
    assert isinstance(fc1.const_value, Recipe)
    experts, _, width = fc1.const_value.dims
    dtype = fc1.const_value.dtype
    row_shape = b.constant([-1, experts], "row_shape")
    if k == 1:
        score = b.op("Sigmoid", b.op("ReduceMax", logits, b.constant([-1], "expert_axis"), keepdims=1, name="max"))
        return b.op("Mul", x, score, name="scaled"), b.op("Reshape", logits, row_shape, name="router_probs"), None
    top, chosen = b.ops("TopK", logits, b.constant([k], "k"), outputs=2, axis=-1, name="TopK")
    scores = b.op("Unsqueeze", b.op("Sigmoid", top), b.constant([-1], "score_axis"), name="scores")
    tokens = b.op("Unsqueeze", x, b.constant([2], "choice_axis"), name="tokens")
    scaled = b.op("Mul", tokens, scores, name="scaled")
    levels = b.constant(np.asarray([_NEVER, 0], dtype=dtype.numpy()), "levels")
    one_hot = b.op("OneHot", chosen, b.constant(experts, "experts"), levels, axis=-1, name="OneHot")
    rows = b.op("Reshape", scaled, b.constant([-1, width], "scaled_shape"), name="rows")
    return rows, b.op("Reshape", one_hot, row_shape, name="router_probs"), b.op("Shape", scaled, name="scaled_dims")


def _weight(value: ir.Value) -> Recipe:
    assert value.const_value is not None
    return as_recipe(value.const_value)


def _fc1(gate_up: Recipe) -> Recipe:
    """[E, D, 2I], gate then up -> [E, 2I, D], gate and up rows in turn."""
    width = gate_up.dims[2] // 2
    halves = (Slice(gate_up, 2, 0, width), Slice(gate_up, 2, width, 2 * width))
    return Interleave([Transpose(half, (0, 2, 1)) for half in halves], axis=1)
