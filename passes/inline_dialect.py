"""Turns what is left of the dialect into standard operators."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from l4export.graph.dialect import DOMAIN, is_dialect

__all__ = ["InlineDialect"]

_CALL = "l4export.call"


class InlineDialect(ir.passes.InPlacePass):
    """Replaces each call f(x; a) by the body of f, with hierarchical names, and drops the dialect's functions.

    Nodes and values of a body are named below the call: `/layers.0/attn/q_norm` becomes
    `/layers.0/attn/q_norm/RMSNormalization` and so on. Afterwards the graph has no node of the domain `l4`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline every call, nested ones too."""
        calls = [node for node in model.graph if is_dialect(node)]
        for node in calls:
            node.metadata_props[_CALL] = str(node.name)
        interface = {value.name: value.metadata_props for node in calls for value in node.outputs}
        result = InlinePass()(model)
        taken = {node.name for node in model.graph if _CALL not in node.metadata_props}
        for node in model.graph:
            call = node.metadata_props.pop(_CALL, None)
            if call is not None:
                _rename(node, call, interface, taken)
        model.opset_imports.pop(DOMAIN, None)
        model.functions.clear()
        return ir.passes.PassResult(model, modified=result.modified)

    def ensures(self, model: ir.Model) -> None:
        """No dialect node is left."""
        left = [node.name for node in model.graph if is_dialect(node)]
        if left:
            raise ir.passes.PostconditionError(f"dialect nodes are left: {left[:3]}")


def _rename(
    node: ir.Node, call: str, interface: Mapping[str | None, Mapping[str, str]], taken: set[str | None]
) -> None:
    """Name a node and its outputs below the call; a result of the call keeps its name, and what it holds."""
    body_name = node.name if node.name and not node.name.startswith("node") else node.op_type
    path, i = f"{call}/{body_name}", 0
    while path in taken:
        i += 1
        path = f"{call}/{body_name}_{i}"
    taken.add(path)
    node.name = path
    for j, value in enumerate(node.outputs):
        if value.name in interface:
            value.metadata_props.update(interface[value.name])
        elif not value.is_graph_output():
            value.name = path if j == 0 else f"{path}:{j}"
