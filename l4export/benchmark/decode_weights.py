"""Which bytes of an engine's weights one decode step reads."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from l4export.quantization.cpu_operators import CPU_DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

    from l4export.model.config import ModelConfig

__all__ = ["decode_weight_bytes"]

_EXPERTS = frozenset({"MoE", "QMoE"})
_SHARED = {CPU_DOMAIN: {4, 5}}
"""Inputs of `MoE` that every token needs, by domain: the tiles of the shared expert."""

_TABLES = {"Gather": {0}, "GatherBlockQuantized": {0, 2, 3}, "GroupQueryAttention": {7, 8}}
"""Operators, and the inputs of which one token needs one row."""


def decode_weight_bytes(model: ir.Model, config: ModelConfig) -> int:
    """Bytes of weights that one decode step of one row must read, as they are stored.

    Every initializer counts in full, with two exceptions: of experts (what `MoE`, `QMoE` or an `If` read, but for a
    shared expert) only the chosen `num_experts_per_tok / num_local_experts`, and of tables that are looked up
    (`Gather`, `GatherBlockQuantized`, the angles of `GroupQueryAttention`) one row. A weight with several readers
    counts once, by the one that needs most: a tied embedding in full. What is computed from initializers alone
    (`DequantizeLinear`) is looked through. The KV cache and activations do not count: they are megabytes where the
    weights are gigabytes.
    """
    weights = [(value, value.const_value) for value in model.graph.initializers.values()]
    return sum(int(tensor.nbytes * _share(value, config)) for value, tensor in weights if tensor is not None)


def _share(value: ir.Value, config: ModelConfig) -> Fraction:
    """The part of an initializer, or of what is computed from initializers alone, that a decode step needs."""
    return max(
        (share for use in value.uses() for share in _shares(value, use.node, use.idx, config)), default=Fraction(0)
    )


def _shares(value: ir.Value, node: ir.Node, index: int, config: ModelConfig) -> Iterator[Fraction]:
    """What `node` needs of `value`, its input number `index`."""
    if (node.op_type in _EXPERTS and index not in _SHARED.get(node.domain, ())) or node.graph is not value.graph:
        yield Fraction(config.num_experts_per_tok, config.num_local_experts)
    elif index in _TABLES.get(node.op_type, ()) and value.shape:
        yield Fraction(1, max(1, value.shape.numpy()[0]))
    elif node.inputs and all(operand is None or _is_constant(operand) for operand in node.inputs):
        yield from (_share(output, config) for output in node.outputs)
    else:
        yield Fraction(1)


def _is_constant(value: ir.Value) -> bool:
    if value.is_graph_input():
        return False
    if (node := value.producer()) is None:
        return value.is_initializer()
    return all(operand is None or _is_constant(operand) for operand in node.inputs)
