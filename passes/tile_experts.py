"""`QMoE` with the router's choice around it -> `l4.cpu.MoE`: experts by l4export's own CPU kernels."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from l4export.engine.cpu_weight_layout import CpuFormat
from l4export.graph.builder import GraphBuilder, own_name, remove_unused_initializers, replace_node
from l4export.graph.conditions import require_half_scales, require_none
from l4export.graph.contents import weights_of
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of, producer
from l4export.quantization.cpu_operators import CPU_DOMAIN, activations, moe_attributes
from l4export.quantization.tiled_weight import TiledWeight
from l4export.weights.recipes import Recipe

__all__ = ["TileExperts"]

_CODES = {"gate_up": (2, 11), "down": (5, 12)}
"""Inputs of `QMoE` that are codes and zero points."""


@dataclasses.dataclass(frozen=True)
class _Routed:
    """What `FuseExperts` has made of `l4.MoE(x, logits, ..)`: `result` is what the whole of it gives."""

    x: ir.Value
    logits: ir.Value
    k: int
    result: ir.Node


class TileExperts(ir.passes.InPlacePass):
    """Chooses, scales and multiplies by the chosen experts in one operator (`l4export.quantization.cpu_operators`).

    `QMoE` has rows that are scaled beforehand, and gives k results of a token that are added afterwards
    (`FuseExperts`). `MoE` takes x and the router's logits, and does all of it. Codes and scales, which must be float16,
    lie together in the order of the kernels.

    Raises:
        onnx_ir.passes.PreconditionError: experts are not fused, or scales are not float16.
    """

    def requires(self, model: ir.Model) -> None:
        """Quantised experts are a `QMoE`, with scales as tiles have them."""
        require_none(model, "MoE", DOMAIN, "run FuseExperts and QuantizeWeightsForOnnxRuntime first")
        require_half_scales(model, "QMoE")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every `QMoE`; what chose and scaled for it is removed."""
        nodes = nodes_of(model, "QMoE", "com.microsoft")
        for node in nodes:
            _tile(model.graph, node)
        if nodes:
            model.opset_imports[CPU_DOMAIN] = 1
            RemoveUnusedNodesPass()(model)
            remove_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _tile(graph: ir.Graph, node: ir.Node) -> None:
    routed = _routed(node)
    b = GraphBuilder.beside(node)
    weights = [_tiled(node, which) for which in _CODES]
    experts, _ = weights[0].lead
    tiles = [_initializer(b, node, which, weight) for which, weight in zip(_CODES, weights, strict=True)]
    level = node.attributes.get_int("accuracy_level", 0)
    attributes = moe_attributes([weight.layout for weight in weights], experts, routed.k, activations(level))
    y = b.op("MoE", routed.x, routed.logits, *tiles, domain=CPU_DOMAIN, name=own_name(node), **attributes)
    replace_node(graph, routed.result, b, [y])


def _tiled(node: ir.Node, which: str) -> TiledWeight:
    """The tiles of one of its weights, [E, N, K]."""
    at, zeros_at = _CODES[which]
    codes, number = node.inputs[at], node.attributes.get_int
    assert codes is not None and isinstance(codes.const_value, Recipe)
    bits, block = number("expert_weight_bits"), number("block_size")
    asymmetric = len(node.inputs) > zeros_at and node.inputs[zeros_at] is not None
    _, n, row = codes.const_value.dims
    layout = CpuFormat(n, row * 8 // bits, bits, block, asymmetric)
    return TiledWeight(codes.const_value, layout, gated=which == "gate_up")


def _initializer(b: GraphBuilder, node: ir.Node, which: str, weight: TiledWeight) -> ir.Value:
    held = weights_of(node.inputs[_CODES[which][0]])
    assert held is not None
    return b.initializer(weight.tiles, f"{'|'.join(held.names)}.tiles", dataclasses.replace(held, part="tiles"))


def _routed(node: ir.Node) -> _Routed:
    """Find what the rows and the probabilities of a `QMoE` were made of."""
    rows, probs = node.inputs[:2]
    if (scaled := producer(rows, ("Mul", ""))) is not None:  # k = 1: x * sigmoid(max z)
        return _Routed(_input(scaled, 0), _input(_made(probs, "Reshape"), 0), 1, node)
    scaled = _made(_input(_made(rows, "Reshape"), 0), "Mul")  # k > 1: a row for each choice
    x = _input(_made(_input(scaled, 0), "Unsqueeze"), 0)
    scores = _made(_input(_made(_input(scaled, 1), "Unsqueeze"), 0), "Sigmoid")
    top = _made(_input(scores, 0), "TopK")
    k = _input(top, 1).const_value
    assert k is not None
    (choices,) = (use.node for use in node.outputs[0].uses())
    (total,) = (use.node for use in choices.outputs[0].uses())
    return _Routed(x, _input(top, 0), int(k.numpy()[0]), total)


def _made(value: ir.Value | None, op_type: str) -> ir.Node:
    node = producer(value, (op_type, ""))
    if node is None:
        raise ir.passes.PreconditionError(f"{value and value.name}: no {op_type} of FuseExperts makes it")
    return node


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
