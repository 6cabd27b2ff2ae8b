"""What a value holds, as notes that travel with it: through passes, into the graph file and back.

The notes are the value's `metadata_props`, which ONNX stores with its type and which runtimes and parsers ignore. Names
of values are for people: nothing reads them to find out what a value is.

    l4export.weights   the weights' names in the checkpoint, a JSON list
    l4export.layout    stored, transposed, interleaved or in_turn
    l4export.part      values, codes, scales, zero_points or tiles
    l4export.rows      rows of each weight, a JSON list, where no Split of the product tells them
    l4export.role      merged, residual, router_logits, past_key, past_value, present_key or present_value; in a vision
                       tower residual, embedded, shuffled or adapted
    l4export.layer     the layer of the role, counted from 0
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal, get_args

import onnx_ir as ir

from l4export.errors import InputError

__all__ = [
    "LayerValue",
    "Layout",
    "Part",
    "Role",
    "Weights",
    "is_cache",
    "layer_value_of",
    "layer_values",
    "note",
    "relaid",
    "weights_of",
]

Layout = Literal["stored", "transposed", "interleaved", "in_turn"]
Part = Literal["values", "codes", "scales", "zero_points", "tiles"]
Role = Literal[
    "merged",
    "residual",
    "router_logits",
    "past_key",
    "past_value",
    "present_key",
    "present_value",
    "embedded",
    "shuffled",
    "adapted",
]

_LAYOUTS: dict[str | None, Layout] = {layout: layout for layout in get_args(Layout)}
_PARTS: dict[str | None, Part] = {part: part for part in get_args(Part)}
_ROLES: dict[str | None, Role] = {role: role for role in get_args(Role)}

_CACHES = frozenset({"past_key", "past_value", "present_key", "present_value"})
_WEIGHTS, _LAYOUT, _PART, _ROWS = "l4export.weights", "l4export.layout", "l4export.part", "l4export.rows"
_ROLE, _LAYER = "l4export.role", "l4export.layer"


@dataclass(frozen=True)
class Weights:
    """Weights of the checkpoint: `names`, or the rows of several weights one below the other.

    `layout` compares each with the checkpoint's tensor: `stored` is as it is there, `transposed` has the last two axes
    exchanged, and `interleaved` is [E, 2I, D] for a tensor [E, D, 2I] = [gate | up], transposed with the rows of gate
    and up in turn. `in_turn` are the rows of two `names` in turn. `part` says which of a quantised weight's tensors
    this is; `values` are the numbers themselves, `tiles` all of a quantised weight in the order of
    `l4export.engine.cpu_weight_layout`. The layout of scales and zero points is that of their codes, and that of tiles
    is their rows' before they went into tiles. `rows` are those of each weight, where several lie one below the other
    and no `Split` of their product tells how many each has.
    """

    names: tuple[str, ...]
    layout: Layout = "stored"
    part: Part = "values"
    rows: tuple[int, ...] = ()

    def swapped(self) -> Weights:
        """The same weights with their last two axes exchanged.

        Raises:
            ValueError: rows lie in turn.
        """
        if self.layout in {"interleaved", "in_turn"}:
            raise ValueError(f"{self.names}: rows in turn cannot be exchanged with columns")
        return dataclasses.replace(self, layout="stored" if self.layout == "transposed" else "transposed")


@dataclass(frozen=True)
class LayerValue:
    """A value that a layer reads or makes.

    `merged` is what the first layer reads [B, S, D] in a decoder that sees images: embeddings with the features of
    images in their places. `residual` is the residual stream [B, S, D] after the layer, `router_logits` [B, S, E] what
    its router says, and the next four are the inputs (`past`) and outputs (`present`) that carry its cache.

    In a vision tower `residual` is [tiles, N + 1, D], and `embedded` the same before layer 0. `shuffled` [tiles, rows,
    D * block^2] and `adapted` [tiles, rows, width] are what the pixel shuffle and the adapter make of the last layer.
    """

    role: Role
    layer: int


def note(value: ir.Value, held: Weights | LayerValue | None) -> ir.Value:
    """Note on a value what it holds (None: nothing), and return the value."""
    match held:
        case Weights(names, layout, part, rows):
            value.metadata_props.update({_WEIGHTS: json.dumps(names), _LAYOUT: layout, _PART: part})
            value.metadata_props.update({_ROWS: json.dumps(rows)} if rows else {})
        case LayerValue(role, layer):
            value.metadata_props.update({_ROLE: role, _LAYER: str(layer)})
    return value


def weights_of(value: ir.Value | None) -> Weights | None:
    """The weights that a value holds; None for a value that holds none.

    Raises:
        InputError: the notes of a graph file make no sense.
    """
    if value is None or _WEIGHTS not in value.metadata_props:
        return None
    notes = value.metadata_props
    try:
        names, rows = json.loads(notes[_WEIGHTS]), json.loads(notes.get(_ROWS, "[]"))
    except ValueError:
        names = rows = None
    layout, part = _LAYOUTS.get(notes.get(_LAYOUT)), _PARTS.get(notes.get(_PART))
    listed = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    counted = isinstance(rows, list) and all(type(count) is int and count > 0 for count in rows)
    if not listed or not counted or layout is None or part is None or len(rows) not in (0, len(names)):
        raise _unclear(value)
    return Weights(tuple(names), layout, part, tuple(rows))


def relaid(value: ir.Value, layout: Layout) -> Weights | None:
    """What a value holds, in another layout; None for a value that holds no weights."""
    held = weights_of(value)
    return held and dataclasses.replace(held, layout=layout)


def layer_value_of(value: ir.Value) -> LayerValue | None:
    """The layer that a value belongs to, and its role there; None for any other value.

    Raises:
        InputError: the notes of a graph file make no sense.
    """
    if _ROLE not in value.metadata_props:
        return None
    role, layer = _ROLES.get(value.metadata_props[_ROLE]), value.metadata_props.get(_LAYER, "")
    if role is None or not layer.isdecimal():
        raise _unclear(value)
    return LayerValue(role, int(layer))


def layer_values(graph: ir.Graph) -> dict[LayerValue, ir.Value]:
    """Every value of a graph that some layer reads or makes."""
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    found = ((layer_value_of(value), value) for value in values)
    return {held: value for held, value in found if held is not None}


def is_cache(value: ir.Value) -> bool:
    """Whether a value is an input or output that carries keys or values of earlier tokens."""
    held = layer_value_of(value)
    return held is not None and held.role in _CACHES


def _unclear(value: ir.Value) -> InputError:
    return InputError(f"{value.name}: its notes do not say what it holds; build the engine again")
