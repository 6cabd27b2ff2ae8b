"""Preconditions that several passes share; each names what is wrong and the pass that must run first."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.contents import weights_of
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import moe_nodes, nodes_of

__all__ = ["require_codes", "require_constant_experts", "require_dialect", "require_inlined", "require_none"]


def require_none(model: ir.Model, op_type: str, domain: str, remedy: str) -> None:
    """Require that an operator is not in the graph (any more).

    Raises:
        onnx_ir.passes.PreconditionError: a node has it; `remedy` says what to run when.
    """
    for node in nodes_of(model, op_type, domain):
        operator = f"{domain}.{op_type}" if domain else op_type
        raise ir.passes.PreconditionError(f"{node.name}: {operator} is in the graph; {remedy}")


def require_dialect(model: ir.Model) -> None:
    """Require that the dialect is not inlined.

    Raises:
        onnx_ir.passes.PreconditionError: the dialect's functions are gone.
    """
    if all(domain != DOMAIN for domain, *_ in model.functions):
        raise ir.passes.PreconditionError("the dialect is inlined already; run this pass before InlineDialect")


def require_inlined(model: ir.Model) -> None:
    """Require that the dialect is inlined.

    Raises:
        onnx_ir.passes.PreconditionError: its functions are still there.
    """
    if any(domain == DOMAIN for domain, *_ in model.functions):
        raise ir.passes.PreconditionError("the dialect is not inlined yet; run InlineDialect first")


def require_constant_experts(model: ir.Model) -> None:
    """Require what lowering a mixture of experts needs.

    Raises:
        onnx_ir.passes.PreconditionError: when an expert weight is not an initializer.
    """
    for node in moe_nodes(model):
        for weight in node.inputs[2:]:
            if weight is None or weight.const_value is None:
                raise ir.passes.PreconditionError(f"{node.name}: expert weights must be initializers")


def require_codes(model: ir.Model, first: str) -> None:
    """Require quantised weights.

    Raises:
        onnx_ir.passes.PreconditionError: no initializer holds codes; `first` is the pass that makes them.
    """
    held = map(weights_of, model.graph.initializers.values())
    if not any(weights is not None and weights.part == "codes" for weights in held):
        raise ir.passes.PreconditionError(f"no weight is quantised; run {first} first")
