"""The weights that a quantised engine really computes with, read back from its own files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from l4export.passes.projection_packing import JOIN
from l4export.quantization import Scheme, dequantize

__all__ = ["dequantized_weights"]

_FIRST_OPERANDS = {"MatMulNBits": (1,), "QMoE": (2, 5), "GatherBlockQuantized": (0,), "DequantizeLinear": (0,)}
"""Where each operator has its codes."""


def dequantized_weights(engine: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 value of every quantised weight, in the checkpoint's names (without prefix) and layout.

    The values follow from the engine's codes, scales and zero points by the formulas of
    `l4export.quantization.schemes`, and from the operators' attributes; the build is not asked.
    """
    seen: set[str] = set()
    for node in ir.load(engine / "decoder.onnx").graph:
        for operand in _FIRST_OPERANDS.get(node.op_type, ()):
            codes = node.inputs[operand]
            assert codes is not None
            name = str(codes.name).partition(".codes")[0]
            if name in seen:
                continue
            seen.add(name)
            values = _matrices(node, operand)
            if name.endswith(".fc1"):
                yield name.removesuffix(".fc1"), _gate_up(values)
            elif name.endswith(".fc2"):
                yield name.removesuffix(".fc2"), values.transpose(0, 2, 1)
            elif JOIN in name:
                yield from zip(name.split(JOIN), _cut(node, values), strict=True)
            elif values.ndim == 3:
                yield name, values.transpose(0, 2, 1)
            else:
                yield name, values


def _cut(node: ir.Node, values: np.ndarray) -> list[np.ndarray]:
    """The weights that `ProjectionPacking` put one below the other, as the `Split` of their product tells."""
    split = next(use.node for use in node.outputs[0].uses() if use.node.op_type == "Split")
    return np.split(values, np.cumsum(_array(split.inputs[1]))[:-1])


def _matrices(node: ir.Node, operand: int) -> np.ndarray:
    """The float32 weight [N, K] or [E, N, K] behind one operand."""
    codes = _array(node.inputs[operand])
    if node.op_type == "DequantizeLinear":
        scales = _array(node.inputs[1]).astype(np.float32)
        block = node.attributes.get_int("block_size", 0)
        wide = scales.repeat(block, axis=-1)[..., : codes.shape[-1]] if block else scales[:, None]
        return np.asarray(codes.astype(np.float32) * wide)
    moe = node.op_type == "QMoE"
    scales = _array(node.inputs[operand + 1 if operand else 2])
    at = {1: 3, 2: 11, 5: 12, 0: 3}[operand]
    present = len(node.inputs) > at and node.inputs[at] is not None
    zero_points = _array(node.inputs[at]) if present else None
    bits = node.attributes.get_int("expert_weight_bits" if moe else "bits")
    scheme = Scheme("int4" if bits == 4 else "int8", node.attributes.get_int("block_size"), zero_points is None)
    if not moe:
        return dequantize(codes.reshape(len(codes), -1), scales, zero_points, scheme)
    zeros = [None] * len(codes) if zero_points is None else list(zero_points)
    return np.stack([dequantize(c, s, z, scheme) for c, s, z in zip(codes, scales, zeros, strict=True)])


def _gate_up(fc1: np.ndarray) -> np.ndarray:
    """[E, 2I, D], gate and up rows in turn -> [E, D, 2I], gate then up."""
    return np.concatenate([fc1[:, 0::2].transpose(0, 2, 1), fc1[:, 1::2].transpose(0, 2, 1)], axis=2)


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()
