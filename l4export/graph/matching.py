"""How passes find nodes."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.dialect import DOMAIN

__all__ = ["attention_nodes", "moe_nodes", "nodes_of", "producer", "qk_norm", "rotation"]


def nodes_of(model: ir.Model, op_type: str, domain: str = "") -> list[ir.Node]:
    """Every node of the graph with this operator."""
    return [node for node in model.graph if (node.op_type, node.domain) == (op_type, domain)]


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """Every `l4.Attention` of the graph."""
    return nodes_of(model, "Attention", DOMAIN)


def moe_nodes(model: ir.Model) -> list[ir.Node]:
    """Every `l4.MoE` of the graph."""
    return nodes_of(model, "MoE", DOMAIN)


def producer(value: ir.Value | None, *operators: tuple[str, str]) -> ir.Node | None:
    """The node that makes a value; with `operators` (type, domain), only if it is one of them."""
    node = None if value is None else value.producer()
    if node is None or (operators and (node.op_type, node.domain) not in operators):
        return None
    return node


def rotation(value: ir.Value | None) -> ir.Node | None:
    """The `RotaryEmbedding` that makes a value."""
    return producer(value, ("RotaryEmbedding", ""))


def qk_norm(value: ir.Value | None) -> ir.Node | None:
    """The `l4.QKNorm` that makes a value."""
    return producer(value, ("QKNorm", DOMAIN))
