"""Three `l4.cpu.Linear` of a gated unit -> `l4.cpu.MLP`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from l4export.engine.cpu_weight_layout import TILE_ROWS
from l4export.graph.builder import GraphBuilder, remove_unused_initializers, replace_node
from l4export.graph.contents import weights_of
from l4export.graph.matching import nodes_of, producer
from l4export.quantization.cpu_operators import CPU_DOMAIN, gated_attributes, layout_of
from l4export.quantization.tiled_weight import TiledWeight
from l4export.weights.evaluation import InTurn, Output

__all__ = ["FuseGatedUnits"]

_LINEAR = ("Linear", CPU_DOMAIN)


@dataclass(frozen=True)
class _Unit:
    gate: ir.Node
    up: ir.Node
    down: ir.Node


class FuseGatedUnits(ir.passes.InPlacePass):
    """`down(silu(gate(x)) * up(x))` -> `MLP(x, gate_up, down)` (`l4export.quantization.cpu_operators`).

    Gate and up must be coded alike, and all three round activations or none. The rows of gate and up lie in turn in one
    tensor of tiles, whose note has both names.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every gated unit."""
        units = [unit for node in nodes_of(model, *_LINEAR) if (unit := _unit(node)) is not None]
        for unit in units:
            _fuse(model.graph, unit)
        if units:
            RemoveUnusedNodesPass()(model)
            remove_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(units))


def _unit(down: ir.Node) -> _Unit | None:
    """The unit that `down` is the end of, of products that nothing else reads."""
    product = _own(down.inputs[0], ("Mul", ""))
    swish = _own(_input(product, 0), ("Swish", ""))
    gate, up = _own(_input(swish, 0), _LINEAR), _own(_input(product, 1), _LINEAR)
    if gate is None or up is None or gate.inputs[0] is not up.inputs[0]:
        return None
    rounding = {node.attributes.get_string("activations") for node in (gate, up, down)}
    coding = layout_of(gate, 1)
    if len(rounding) > 1 or coding != layout_of(up, 1) or 2 * coding.rows % TILE_ROWS:
        return None
    return _Unit(gate, up, down)


def _own(value: ir.Value | None, operator: tuple[str, str]) -> ir.Node | None:
    """The node that makes a value which is read once, if it is this operator."""
    return producer(value, operator) if value is not None and len(value.uses()) == 1 else None


def _input(node: ir.Node | None, index: int) -> ir.Value | None:
    return None if node is None else node.inputs[index]


def _fuse(graph: ir.Graph, unit: _Unit) -> None:
    b = GraphBuilder(scope=str(unit.down.name).rpartition("/")[0].rpartition("/")[0])
    gate, up = _tiled(unit.gate), _tiled(unit.up)
    layout = dataclasses.replace(gate.layout, rows=2 * gate.layout.rows)
    both = TiledWeight(InTurn(gate.codes, up.codes).outputs[0], layout, gated=True)
    held = [weights for node in (unit.gate, unit.up) if (weights := weights_of(node.inputs[1])) is not None]
    names = tuple(name for weights in held for name in weights.names)
    noted = dataclasses.replace(held[0], names=names, layout="in_turn")
    tiles = b.initializer(both.tiles, f"{'|'.join(names)}.tiles", noted)
    attributes = gated_attributes([layout, layout_of(unit.down, 1)], unit.down.attributes.get_string("activations"))
    y = b.op("MLP", unit.gate.inputs[0], tiles, unit.down.inputs[1], domain=CPU_DOMAIN, name="MLP", **attributes)
    replace_node(graph, unit.down, b, [y])


def _tiled(node: ir.Node) -> TiledWeight:
    tiles = node.inputs[1]
    assert tiles is not None and isinstance(tiles.const_value, Output)
    assert isinstance(tiles.const_value.evaluation, TiledWeight)
    return tiles.const_value.evaluation
