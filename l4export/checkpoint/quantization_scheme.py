"""How a linear layer is quantised: what config.json says, and which tensors the layer must then have.

compressed-tensors keeps beside a layer's codes what is needed to get numbers back,

    weight[r, c] = (code[r, c] - zero_point[g]) * scale[g]

where g is the block of rows and columns in which (r, c) is. A scheme says the format of the codes and the blocks, and
that decides the names, shapes and dtypes of all of the layer's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from l4export.checkpoint.packed_ints import PACKED_BITS, words
from l4export.errors import InputError
from l4export.model.config_fields import Fields, show
from l4export.storage.safetensors import HANDLED_DTYPES

__all__ = ["CODES", "FP8_CHANNELS", "Expected", "Scheme", "read_schemes"]

Shape = tuple[int, ...]
CODES = ("F8_E4M3", "I8")
"""The dtypes of codes that stand under a weight's own name."""

_STRATEGIES = ("tensor", "channel", "group", "block")
_MAX_GROUPS = 64  # of layers with a scheme each


@dataclass(frozen=True)
class Expected:
    """What a tensor may be: one of some shapes, of some dtypes as safetensors spells them."""

    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Scheme:
    """The format of the codes, and the blocks [rows, columns] of a matrix [out, in] that share a scale.

    Attributes:
        bits: Of a code.
        is_float: FP8 (E4M3) instead of integers.
        symmetric: Without zero points.
        strategy: The blocks: the whole matrix ("tensor"), a row ("channel"), `group` columns of a row, or `block`.
        group: Columns of a group.
        block: Rows and columns of a block.
        reordered: Which columns are a group is not their order: a tensor says so (activation ordering).
    """

    bits: int
    is_float: bool
    symmetric: bool = True
    strategy: str = "channel"
    group: int = 0
    block: tuple[int, int] = (0, 0)
    reordered: bool = False

    def __str__(self) -> str:
        """For people, such as "INT4, groups of 128"."""
        codes = f"{'FP' if self.is_float else 'INT'}{self.bits}{'' if self.symmetric else ' with zero points'}"
        blocks = {
            "tensor": "one scale",
            "channel": "a scale a channel",
            "group": f"groups of {self.group}{' in another order' if self.reordered else ''}",
            "block": f"blocks of {self.block[0]} x {self.block[1]}",
        }
        return f"{codes}, {blocks[self.strategy]}"

    def span(self, shape: Shape) -> tuple[int, int]:
        """Rows and columns of a block of a matrix of that shape."""
        rows, columns = shape
        spans = {"tensor": (rows, columns), "channel": (1, columns), "group": (1, self.group), "block": self.block}
        return spans[self.strategy]

    def blocks(self, shape: Shape) -> tuple[int, int]:
        """How many blocks a matrix of that shape has, downwards and across; the last ones may be smaller."""
        (rows, columns), (high, wide) = shape, self.span(shape)
        return -(-rows // high), -(-columns // wide)

    def packs_zero_points(self, packed: bool) -> bool:
        """Whether zero points are packed into words, as those of packed codes are where rows have their own."""
        return packed and self.strategy in ("channel", "group")

    def tensors(self, shape: Shape, packed: bool) -> dict[str, Expected]:
        """What a layer with a weight of that shape must have, by names within the layer; `packed` as its codes are."""
        scales: tuple[Shape, ...] = (self.blocks(shape),)
        if self.strategy == "tensor":
            scales = ((), (1,), (1, 1))
        if packed:
            found = {"weight_packed": Expected(((shape[0], words(shape[1], self.bits)),), ("I32",))}
            found["weight_shape"] = Expected(((2,),), ("I64", "I32"))
        else:
            found = {"weight": Expected((tuple(shape),), ("F8_E4M3" if self.is_float else "I8",))}
        found["weight_scale"] = Expected(scales, tuple(HANDLED_DTYPES))
        if self.packs_zero_points(packed) and not self.symmetric:
            zeros = (words(shape[0], self.bits), self.blocks(shape)[1])
            found["weight_zero_point"] = Expected((zeros,), ("I32",))
        elif not self.symmetric:
            found["weight_zero_point"] = Expected(scales, ("I8",))
        if self.reordered:
            found["weight_g_idx"] = Expected(((shape[1],),), ("I32", "I64"))
        return found


FP8_CHANNELS = Scheme(bits=8, is_float=True)
"""FP8 with a scale a channel: what fbgemm_fp8 makes."""


def read_schemes(config: Mapping[str, Any], where: str) -> tuple[Scheme, ...]:
    """The schemes of the weights in a `quantization_config` of compressed-tensors.

    Which layers a scheme is for is not read: `targets` and `ignore` are regular expressions of the file's author, and
    the layers' own tensors tell.

    Raises:
        InputError: a field of a wrong type, or a scheme that is not read, by name; messages begin with `where`.
    """
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not 1 <= len(groups) <= _MAX_GROUPS:
        raise InputError(f"{where}: quantization_config: config_groups must be an object of 1 to {_MAX_GROUPS} schemes")
    found = []
    for name, group in groups.items():
        at = f"{where}: quantization_config: {str(name)[:60]!r}"
        weights = Fields(group, at).raw.get("weights")
        if weights is not None:
            found.append(_scheme(Fields(weights, at)))
    return tuple(dict.fromkeys(found))


def _scheme(fields: Fields) -> Scheme:
    raw = fields.raw
    bits = fields.typed("num_bits", raw.get("num_bits", 8), int, 1, 32)
    kind, symmetric = raw.get("type", "int"), fields.typed("symmetric", raw.get("symmetric", True), bool)
    if (kind, bits) not in (("float", 8), *(("int", bits) for bits in PACKED_BITS)):
        raise fields.refuse("weights", f"are {show(kind)} of {bits} bits; read are int of 4 or 8 and float of 8")
    if kind == "float" and not symmetric:
        raise fields.refuse("weights", "are FP8 with zero points, which is not read")
    size = raw.get("group_size")
    size = None if size is None else fields.typed("group_size", size, int, -1, 2**24)
    default = "tensor" if size is None else "group" if size > 0 else "channel"
    if (strategy := raw.get("strategy") or default) not in _STRATEGIES:
        raise fields.refuse("strategy", f"is {show(strategy)}; read are {', '.join(_STRATEGIES)}")
    if strategy == "group" and not (size and size > 0):
        raise fields.refuse("group_size", "must be from 1 where the strategy is 'group'")
    if (order := raw.get("actorder")) not in (None, False, True, "group", "dynamic", "weight", "static"):
        raise fields.refuse("actorder", f"is {show(order)}; read are 'group' and 'weight'")
    return Scheme(
        bits=bits,
        is_float=kind == "float",
        symmetric=symmetric,
        strategy=strategy,
        group=size if strategy == "group" and size else 0,
        block=_block(fields) if strategy == "block" else (0, 0),
        reordered=order in (True, "group", "dynamic"),
    )


def _block(fields: Fields) -> tuple[int, int]:
    """`block_structure`: [rows, columns], or "rowsxcolumns" as old versions wrote it."""
    given = fields.raw.get("block_structure")
    if isinstance(given, str) and all(part.isascii() and part.isdigit() for part in given[:40].split("x")):
        given = [int(part) for part in given[:40].split("x")]
    if not isinstance(given, list) or len(given) != 2:
        raise fields.refuse("block_structure", "must be [rows, columns] where the strategy is 'block'")
    rows, columns = (fields.typed("block_structure", size, int, 1, 2**24) for size in given)
    return rows, columns
