"""The norm of queries and keys inside attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from l4export.graph.matching import nodes_of, producer

__all__ = ["FuseQKNorm"]

_Q_NORM, _K_NORM = 14, 15
"""Inputs of GroupQueryAttention: q_norm_weight and k_norm_weight, [head_size]."""


class FuseQKNorm(ir.passes.InPlacePass):
    """`GroupQueryAttention(norm(q), norm(k), v)` -> `GroupQueryAttention(q, k, v, q_norm_weight, k_norm_weight)`.

    norm is what `WriteOutQKNorm` has written: x / sqrt(mean(x^2 over a head) + epsilon) with weights of one [d]. The
    operator does the same before its own rotation, with `qk_norm_epsilon` (schema of ONNX Runtime 1.31.1: inputs 14 and
    15). Its CPU kernel refuses these inputs, so this is one of the last passes, and only a GPU executes what follows.

    Layers without such norms, or with something between norm and attention, stay as they are. A factor of YaRN lies
    before the norm and stays there.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every attention whose queries and keys are both normalised in one way."""
        modified = False
        for node in nodes_of(model, "GroupQueryAttention", "com.microsoft"):
            q, k = map(_norm, node.inputs[:2])
            if q is None or k is None or (q.weights, q.epsilon) != (k.weights, k.epsilon):
                continue
            node.replace_input_with(0, q.x)
            node.replace_input_with(1, k.x)
            node.resize_inputs(_K_NORM + 1)
            for index in (_Q_NORM, _K_NORM):
                node.replace_input_with(index, q.weights)
            node.attributes["qk_norm_epsilon"] = ir.AttrFloat32("qk_norm_epsilon", q.epsilon)
            model.graph.remove([*q.nodes, *k.nodes], safe=True)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


@dataclass(frozen=True)
class _Norm:
    """The norm of each head of x, and its nodes from the last to the first."""

    x: ir.Value
    weights: ir.Value
    epsilon: float
    nodes: tuple[ir.Node, ...]


def _norm(value: ir.Value | None) -> _Norm | None:
    """The norm that makes a value, if its weights are one and nobody else reads it."""
    joined = producer(value, ("Reshape", ""))
    normed = producer(joined.inputs[0] if joined else None, ("RMSNormalization", ""))
    by_head = producer(normed.inputs[0] if normed else None, ("Reshape", ""))
    if joined is None or normed is None or by_head is None:
        return None
    weights, sizes, x = normed.inputs[1], by_head.inputs[1], by_head.inputs[0]
    if x is None or weights is None or sizes is None or weights.const_value is None or sizes.const_value is None:
        return None
    ones, shape = weights.const_value.numpy(), sizes.const_value.numpy().tolist()
    fits = ones.ndim == 1 and bool(np.all(ones == 1)) and len(shape) == 4 and shape[3] == len(ones)
    alone = all(len(node.outputs[0].uses()) == 1 for node in (joined, normed, by_head))
    last_axis = normed.attributes.get_int("axis", -1) == -1
    if not (fits and alone and last_axis):
        return None
    return _Norm(x, weights, normed.attributes.get_float("epsilon", 1e-5), (joined, normed, by_head))
