"""`l4.MoE` -> standard ONNX: the chosen experts alone for few tokens, all of them for many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, replace_node
from l4export.graph.conditions import require_constant_experts, require_dialect
from l4export.graph.matching import moe_nodes

__all__ = ["LowerExperts"]


class LowerExperts(ir.passes.InPlacePass):
    """Two exact forms of the same sum, of which an `If` chooses one, over the same weights.

    y = sum_j f_{e_j}(s_j x), f_e(x) = (silu(g) * u) down_e, [g | u] = x gate_up_e, s_j = sigmoid(z_{e_j}), e_1..e_k the
    top k of the router's logits z. For T tokens and E experts:

    * gather, T k < E: the k experts of each token are copied from the weights, [T, k, D, 2I] and [T, k, I, D], and
      multiplied in a batch. Reads no more of the weights than the other form.
    * dense, otherwise: every expert sees every token, scaled by its score or by 0. Without biases f_e(0) = 0.

    A builder with optimisation profiles sees the condition decided in each of them, so that one graph serves decode
    and prefill and the weights are there once.

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
            _rewrite(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(nodes))


@dataclass(frozen=True)
class _Routed:
    """What both forms take: tokens [T, D], chosen int64 [T, k] and scores [T, k]; logits [T, E]; the weights."""

    tokens: ir.Value
    logits: ir.Value
    chosen: ir.Value
    scores: ir.Value
    gate_up: ir.Value
    down: ir.Value


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    x, logits, gate_up, down = node.inputs
    assert x is not None and logits is not None and gate_up is not None and down is not None
    assert gate_up.shape is not None and gate_up.dtype is not None
    experts, width, _ = gate_up.shape.numpy()
    k = node.attributes.get_int("k")
    b = GraphBuilder(scope=str(node.name))
    tokens = b.op("Reshape", x, b.constant([-1, width], "token_shape"), name="tokens")
    rows = b.op("Reshape", logits, b.constant([-1, experts], "logit_shape"), name="logits")
    top, chosen = b.ops("TopK", rows, b.constant([k], "k"), outputs=2, axis=-1)
    scores = b.op("Sigmoid", b.op("Cast", top, to=int(ir.DataType.FLOAT), name="top_float"))
    scores = b.op("Cast", scores, to=int(gate_up.dtype), name="scores")
    routed = _Routed(tokens, rows, chosen, scores, gate_up, down)
    count = b.op("Squeeze", b.op("Shape", tokens, start=0, end=1, name="token_count"), name="tokens_scalar")
    visits = b.op("Mul", count, b.constant(k, "experts_per_token"), name="visits")
    few = b.op("Less", visits, b.constant(experts, "experts"), name="few_tokens")
    gather = _branch(b, GraphBuilder(scope=f"{node.name}/gather"), _gather, routed)
    dense = _branch(b, GraphBuilder(scope=f"{node.name}/dense"), _dense, routed)
    y = b.op("If", few, then_branch=gather, else_branch=dense)
    replace_node(graph, node, b, [b.op("Reshape", y, b.op("Shape", x, name="x_shape"), name="y")])


def _branch(
    outer: GraphBuilder, b: GraphBuilder, form: Callable[[GraphBuilder, _Routed], ir.Value], routed: _Routed
) -> ir.Graph:
    """A form as a subgraph without inputs; its constants belong to the outer graph, where the passes look."""
    y = form(b, routed)
    outer.initializers += b.initializers
    assert routed.gate_up.shape is not None
    y.type, y.shape = ir.TensorType(_dtype(routed)), ir.Shape(["tokens", routed.gate_up.shape[1]])
    return ir.Graph([], [y], nodes=b.nodes, name=form.__name__.removeprefix("_"))


def _gather(b: GraphBuilder, routed: _Routed) -> ir.Value:
    """[T, D], rows [T, k, 1, D] against the weights of their experts."""
    tokens = b.op("Unsqueeze", routed.tokens, b.constant([1, 2], "token_axes"), name="tokens")
    scores = b.op("Unsqueeze", routed.scores, b.constant([2, 3], "score_axes"), name="scores")
    gate_up = b.op("Gather", routed.gate_up, routed.chosen, axis=0, name="gate_up")
    down = b.op("Gather", routed.down, routed.chosen, axis=0, name="down")
    outputs = _experts(b, b.op("Mul", tokens, scores, name="scaled"), gate_up, down)
    return b.op("ReduceSum", outputs, b.constant([1, 2], "choice_axes"), keepdims=0, name="sum")


def _dense(b: GraphBuilder, routed: _Routed) -> ir.Value:
    """[T, D], every token [E, T, D] times its score or 0."""
    zero = b.constant(np.zeros((), dtype=_dtype(routed).numpy()), "zero")
    nothing = b.op("Expand", zero, b.op("Shape", routed.logits, name="score_shape"), name="no_scores")
    scores = b.op("ScatterElements", nothing, routed.chosen, routed.scores, axis=1, name="scores")
    by_expert = b.op("Transpose", scores, perm=[1, 0], name="scores_by_expert")
    column = b.op("Unsqueeze", by_expert, b.constant([-1], "last_axis"), name="score_column")
    scaled = b.op("Mul", routed.tokens, column, name="scaled")
    outputs = _experts(b, scaled, routed.gate_up, routed.down)
    return b.op("ReduceSum", outputs, b.constant([0], "expert_axis"), keepdims=0, name="sum")


def _experts(b: GraphBuilder, rows: ir.Value, gate_up: ir.Value, down: ir.Value) -> ir.Value:
    """(silu(g) * u) down, [g | u] = rows gate_up."""
    gate, up = b.ops("Split", b.op("MatMul", rows, gate_up, name="gate_and_up"), outputs=2, axis=-1, num_outputs=2)
    gated = b.op("Mul", b.op("Swish", gate, name="activated"), up, name="gated")
    return b.op("MatMul", gated, down, name="outputs")


def _dtype(routed: _Routed) -> ir.DataType:
    assert routed.gate_up.dtype is not None
    return routed.gate_up.dtype
