"""`Add(l4.cpu.MLP, l4.cpu.MoE)` -> one `l4.cpu.MoE`: the shared expert among the others."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from l4export.graph.builder import GraphBuilder, own_name, replace_node
from l4export.graph.matching import nodes_of, producer
from l4export.quantization.cpu_operators import CPU_DOMAIN, layout_of, moe_attributes, tile_inputs

__all__ = ["AbsorbSharedExpert"]


class AbsorbSharedExpert(ir.passes.InPlacePass):
    """`MLP(x, gate_up, down) + MoE(x, z, ..)` -> `MoE(x, z, .., gate_up, down)`: one operator a layer of experts.

    The shared expert must be as wide as the others, and round activations as they do.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every sum of a gated unit and experts of the same x."""
        found = [(node, pair) for node in nodes_of(model, "Add") if (pair := _shared_and_routed(node)) is not None]
        for node, (shared, experts) in found:
            _absorb(model.graph, node, shared, experts)
        if found:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(found))


def _shared_and_routed(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    shared, experts = producer(node.inputs[0], ("MLP", CPU_DOMAIN)), producer(node.inputs[1], ("MoE", CPU_DOMAIN))
    if shared is None or experts is None or len(tile_inputs(experts)) > 2:
        return None
    alike = all(
        shared.attributes[name].value == experts.attributes[name].value for name in ("intermediate", "activations")
    )
    alone = all(len(each.outputs[0].uses()) == 1 for each in (shared, experts))
    return (shared, experts) if alike and alone and shared.inputs[0] is experts.inputs[0] else None


def _absorb(graph: ir.Graph, node: ir.Node, shared: ir.Node, experts: ir.Node) -> None:
    b = GraphBuilder.beside(experts)
    layouts = [layout_of(each, index) for each in (experts, shared) for index in tile_inputs(each)]
    number, rounding = experts.attributes.get_int, experts.attributes.get_string("activations")
    attributes = moe_attributes(layouts, number("experts"), number("k"), rounding)
    inputs = (*experts.inputs, *shared.inputs[1:])
    y = b.op("MoE", *inputs, domain=CPU_DOMAIN, name=own_name(experts), **attributes)
    replace_node(graph, node, b, [y])
