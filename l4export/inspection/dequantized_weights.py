"""The weights that a quantised engine really computes with, read back from its own files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from l4export.engine.manifest import load_manifest
from l4export.graph.contents import Weights, weights_of
from l4export.graph.matching import producer
from l4export.inspection.graph_file import load_graph
from l4export.inspection.tiled_matrices import tiled_matrices
from l4export.inspection.weight_bytes import weight_bytes
from l4export.model.weight_names import kind_of
from l4export.passes.quantize_activations import fp8_products
from l4export.quantization import Scheme, dequantize
from l4export.quantization.cpu_operators import layout_of, tile_inputs
from l4export.runtimes.onnxruntime.portable import unpacked

__all__ = ["DequantizedWeights", "dequantized_weights", "input_scales"]

_FIRST_OPERANDS = {"MatMulNBits": (1,), "QMoE": (2, 5), "GatherBlockQuantized": (0,), "DequantizeLinear": (0,)}
"""Where each operator of ONNX Runtime has its codes; those of l4export's own kernels have tiles."""


def dequantized_weights(engine: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 value of every quantised weight of an engine; see `DequantizedWeights`."""
    weights = DequantizedWeights(engine)
    for name in weights.names:
        values = weights.rows(name, slice(None))
        assert values is not None
        yield name, values


def input_scales(engine: Path) -> dict[str, float]:
    """By the names of FP8 weights, the scales by which an engine rounds their inputs; none if it rounds none."""
    return DequantizedWeights(engine).input_scales


class DequantizedWeights:
    """Float32 values of an engine's quantised weights, and of routers that a calibration has fitted, in the
    checkpoint's names (without prefix) and layout.

    The values follow from the engine's codes, scales and zero points by the formulas of
    `l4export.quantization.schemes`, and from the operators' attributes. Packed codes are unpacked, and tiles too, as
    many experts or rows as are asked for. Nothing that the build knew is used.
    """

    half_floats: Mapping[str, str] = {}
    """None: what an engine makes of its other weights is part of how it computes."""

    def __init__(self, engine: Path) -> None:
        self._engine = engine
        self._operands: dict[str, tuple[ir.Node, int, range]] = {}
        manifest = load_manifest(engine)
        self._packed = {weight.name: weight for weight in manifest.packed_weights}
        self._model, self._config = load_graph(engine, manifest), manifest.model
        graph = self._model.graph
        self._routers = _routers(graph) if "calibration" in manifest.options["weights"] else {}
        for node in graph:
            for operand in tile_inputs(node) or _FIRST_OPERANDS.get(node.op_type, ()):
                held = weights_of(node.inputs[operand])
                if held is None:
                    continue  # an activation's codes
                for name, own in zip(held.names, _row_ranges(node, operand, held), strict=True):
                    self._operands.setdefault(name, (node, operand, own))

    @property
    def names(self) -> list[str]:
        """The weights that are quantised, and routers that were fitted."""
        return [*self._operands, *self._routers]

    @property
    def input_scales(self) -> dict[str, float]:
        """By the names of FP8 weights, the scales by which their inputs are rounded; none if none are."""
        found: dict[str, float] = {}
        for product in fp8_products(self._model.graph):
            rounding = product.x.producer()
            if rounding is not None and rounding.op_type == "DequantizeLinear":
                found[product.weight] = float(_array(rounding.inputs[1]))
        return found

    def stored_bytes(self) -> dict[str, float]:
        """Bytes of every weight, quantised or not; see `weight_bytes`."""
        return weight_bytes(self._model, self._config)

    def rows(self, name: str, rows: slice) -> np.ndarray | None:
        """Rows of a weight's first axis (features, or experts); None for a weight that is not quantised."""
        if name in self._routers:
            return _array(self._routers[name])[rows].astype(np.float32)
        if name not in self._operands:
            return None
        node, operand, own = self._operands[name]
        asked = slice(own[rows].start, own[rows].stop, own[rows].step)
        if operand in tile_inputs(node):
            values = tiled_matrices(node, operand, asked, _array(node.inputs[operand]))
        else:
            values = _matrices(node, operand, asked, self._codes(node.inputs[operand], asked))
        held = weights_of(node.inputs[operand])
        assert held is not None
        match held.layout:
            case "interleaved":
                return _gate_up(values)
            case "in_turn":
                return values
            case "transposed":
                return values.swapaxes(-1, -2)
            case "stored":
                return values

    def _codes(self, value: ir.Value | None, rows: slice) -> np.ndarray:
        """Rows of an operand's codes, in the order of the schema."""
        packed = self._packed.get(str(value.name)) if value is not None else None
        return _array(value)[rows] if packed is None else unpacked(self._engine, packed, rows)


def _routers(graph: ir.Graph) -> dict[str, ir.Value]:
    """Float weights [E, D] of routers."""
    read = [node.inputs[1] for node in graph if node.op_type == "FusedMatMul"]
    held = [(weight, weights.names[0]) for weight in read if (weights := weights_of(weight)) is not None]
    return {name: weight for weight, name in held if weight is not None and kind_of(name) == "router"}


def _row_ranges(node: ir.Node, operand: int, held: Weights) -> list[range]:
    """Rows of each weight, one below the other or in turn: as noted, or as the `Split` of their product shows."""
    codes = node.inputs[operand]
    assert codes is not None and codes.const_value is not None
    dims = codes.const_value.shape.numpy()
    tiled = operand in tile_inputs(node)
    count = layout_of(node, operand).rows if tiled and len(dims) == 2 else int(dims[0])
    if len(held.names) == 1:
        return [range(count)]
    if held.layout == "in_turn":
        return [range(first, count, len(held.names)) for first in range(len(held.names))]
    if held.rows:
        ends = np.cumsum(held.rows).tolist()
    else:
        split = next(use.node for use in node.outputs[0].uses() if use.node.op_type == "Split")
        ends = np.cumsum(_array(split.inputs[1])).tolist()
    return [range(start, end) for start, end in itertools.pairwise([0, *ends])]


def _matrices(node: ir.Node, operand: int, rows: slice, codes: np.ndarray) -> np.ndarray:
    """Rows of the float32 weight [N, K] or [E, N, K] that one operand holds, from their codes."""
    if node.op_type == "DequantizeLinear":
        scales = _array(node.inputs[1])[rows].astype(np.float32)
        block = node.attributes.get_int("block_size", 0)
        wide = scales.repeat(block, axis=-1)[..., : codes.shape[-1]] if block else scales[:, None]
        return np.asarray(codes.astype(np.float32) * wide)
    moe = node.op_type == "QMoE"
    scales = _array(_before_cast(node.inputs[operand + 1 if operand else 2]))[rows]
    at = {1: 3, 2: 11, 5: 12, 0: 3}[operand]
    present = len(node.inputs) > at and node.inputs[at] is not None
    zero_points = _array(node.inputs[at])[rows] if present else None
    bits = node.attributes.get_int("expert_weight_bits" if moe else "bits")
    scheme = Scheme("int4" if bits == 4 else "int8", node.attributes.get_int("block_size"), zero_points is None)
    if not moe:
        return dequantize(codes.reshape(len(codes), -1), scales, zero_points, scheme)
    zeros = [None] * len(codes) if zero_points is None else list(zero_points)
    return np.stack([dequantize(c, s, z, scheme) for c, s, z in zip(codes, scales, zeros, strict=True)])


def _gate_up(fc1: np.ndarray) -> np.ndarray:
    """[E, 2I, D], gate and up rows in turn -> [E, D, 2I], gate then up."""
    return np.concatenate([fc1[:, 0::2].transpose(0, 2, 1), fc1[:, 1::2].transpose(0, 2, 1)], axis=2)


def _before_cast(scales: ir.Value | None) -> ir.Value | None:
    """What holds scales that may be cast to what an operator takes."""
    cast = producer(scales, ("Cast", ""))
    return scales if cast is None else cast.inputs[0]


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()
