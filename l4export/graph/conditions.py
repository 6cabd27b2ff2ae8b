"""Preconditions that several passes share; each names what is wrong and the pass that must run first."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.contents import Part, weights_of
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import moe_nodes, nodes_of, producer

__all__ = [
    "require_codes",
    "require_constant_experts",
    "require_dialect",
    "require_half_scales",
    "require_inlined",
    "require_none",
]


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


def require_codes(model: ir.Model, first: str, *others: Part) -> None:
    """Require quantised weights.

    Raises:
        onnx_ir.passes.PreconditionError: none holds codes, or one of the `others`; `first` is the pass that makes them.
    """
    held = map(weights_of, model.graph.initializers.values())
    if not any(weights is not None and weights.part in ("codes", *others) for weights in held):
        raise ir.passes.PreconditionError(f"no weight is quantised; run {first} first")


def require_half_scales(model: ir.Model, op_type: str) -> None:
    """Require that the scales of an operator of ONNX Runtime are float16, and cast to what it computes in.

    Raises:
        onnx_ir.passes.PreconditionError: those of a node are not.
    """
    for node in nodes_of(model, op_type, "com.microsoft"):
        casts = [cast for value in node.inputs if (cast := producer(value, ("Cast", ""))) is not None]
        stored = [cast.inputs[0] for cast in casts]
        if not any(value is not None and value.dtype == ir.DataType.FLOAT16 for value in stored):
            remedy = 'run QuantizeWeightsForOnnxRuntime(.., scale_dtype="float16") first'
            raise ir.passes.PreconditionError(f"{node.name}: scales are not float16; {remedy}")
