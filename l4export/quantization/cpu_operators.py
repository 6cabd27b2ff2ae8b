"""The operators of l4export's own CPU kernels (`runtimes/cpp/kernels`), domain `l4.cpu`: what they take and compute.

Weights are tiles (`l4export.engine.cpu_weight_layout`), activations float32 [.., K].

* `Linear(x, tiles)` = x W'. W [N, K].
* `MLP(x, gate_up, down)` = down(silu(gate(x)) * up(x)), a gated unit. The rows of gate and up lie in a tile by halves
  (`gate_up_order`).
* `MoE(x, router_logits, gate_up, down[, shared_gate_up, shared_down])` = shared(x) + sum_e unit_e(sigmoid(z_e) x) over
  the experts e with the `k` largest logits z_e, of equal ones the first. All are gated units.

`activations` is `int8`, which rounds them in the blocks of the weights as ONNX Runtime's accuracy level 4 does, or
`float`. Every tensor of tiles has its own `bits`, `block_size` and `zero_points` (0 or 1); those of `MLP` and `MoE` are
lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from l4export.engine.cpu_weight_layout import CpuFormat

__all__ = [
    "CPU_DOMAIN",
    "activations",
    "gated_attributes",
    "is_gated",
    "layout_of",
    "linear_attributes",
    "moe_attributes",
    "tile_inputs",
]

CPU_DOMAIN = "l4.cpu"

_FIRST_TILES = {"Linear": 1, "MLP": 1, "MoE": 2}
"""The first input that is tiles, by operator; all after it are, but for the bias of `Linear`."""


def activations(accuracy_level: int) -> str:
    """What ONNX Runtime's accuracy level means to these operators."""
    return "int8" if accuracy_level == 4 else "float"


def linear_attributes(layout: CpuFormat, activations: str) -> dict[str, Any]:
    """All attributes of a `Linear`."""
    coding = {"bits": layout.bits, "block_size": layout.block_size, "zero_points": int(layout.zero_points)}
    return {"N": layout.rows, "K": layout.columns, "activations": activations, **coding}


def moe_attributes(layouts: Sequence[CpuFormat], experts: int, k: int, activations: str) -> dict[str, Any]:
    """All attributes of a `MoE` with these tiles: gate_up and down of experts, perhaps the same of the shared one."""
    return {"experts": experts, "k": k, **gated_attributes(layouts, activations)}


def gated_attributes(layouts: Sequence[CpuFormat], activations: str) -> dict[str, Any]:
    """All attributes of a `MLP` with these tiles: gate_up and down."""
    gate_up, down = layouts[:2]
    return {
        "hidden": gate_up.columns,
        "intermediate": down.columns,
        "activations": activations,
        "bits": [layout.bits for layout in layouts],
        "block_size": [layout.block_size for layout in layouts],
        "zero_points": [int(layout.zero_points) for layout in layouts],
    }


def tile_inputs(node: ir.Node) -> range:
    """The numbers of a node's inputs that are tiles; none for a node of another domain."""
    if node.domain != CPU_DOMAIN or node.op_type not in _FIRST_TILES:
        return range(0)
    first = _FIRST_TILES[node.op_type]
    return range(first, 2 if node.op_type == "Linear" else len(node.inputs))


def layout_of(node: ir.Node, index: int) -> CpuFormat:
    """The layout of input number `index`, one of `tile_inputs`.

    Raises:
        ValueError: attributes that describe none.
    """
    number = node.attributes.get_int
    if node.op_type == "Linear":
        return CpuFormat(
            number("N"), number("K"), number("bits"), number("block_size"), zero_points=bool(number("zero_points"))
        )
    at = index - _FIRST_TILES[node.op_type]
    bits, block, zeros = (node.attributes.get_ints(name)[at] for name in ("bits", "block_size", "zero_points"))
    hidden, width = number("hidden"), number("intermediate")
    rows, columns = (2 * width, hidden) if at % 2 == 0 else (hidden, width)
    return CpuFormat(rows, columns, bits, block, bool(zeros))


def is_gated(node: ir.Node, index: int) -> bool:
    """Whether input number `index`, one of `tile_inputs`, has the rows of gate and up."""
    return node.op_type != "Linear" and (index - _FIRST_TILES[node.op_type]) % 2 == 0
