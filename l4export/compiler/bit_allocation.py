"""`--quant auto`: which weights get which scheme, so that the damage is least for the bits that there are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l4export.model.config import ModelConfig
from l4export.model.tensors import tensors
from l4export.model.weight_names import kind_of, layer_of
from l4export.quantization.policy import Policy, Rule
from l4export.quantization.schemes import Kind, ScaleDtype, Scheme

__all__ = ["WeightGroup", "allocate", "policy_of", "weight_groups"]

_CHOICES: tuple[tuple[Kind, int], ...] = tuple((kind, block) for kind in ("int4", "int8") for block in (128, 64, 32))
"""From the smallest to the largest."""

_TOGETHER = {
    "attention q": "attention q, k, v",  # packed into one operator
    "attention k": "attention q, k, v",
    "attention v": "attention q, k, v",
    "experts gate_up": "experts",  # one operator takes both, of all experts
    "experts down": "experts",
}
_FLOAT = ("router", "norm")
_MLPS = ("experts gate_up", "experts down", "shared expert", "dense MLP")

_UNITS = 20_000
"""The bytes to be given away are counted in so many steps at most."""


@dataclass(frozen=True)
class WeightGroup:
    """Weights that get one scheme, with their shapes as the checkpoint has them, and the schemes that fit."""

    shapes: dict[str, tuple[int, ...]]
    choices: tuple[Scheme, ...]

    def nbytes(self, scheme: Scheme) -> int:
        """What the group takes: codes and scales."""
        count = sum(map(math.prod, self.shapes.values()))
        return count * scheme.bits // 8 + count // scheme.block_size * np.dtype(scheme.scale_dtype).itemsize


def weight_groups(
    config: ModelConfig, scale_dtype: ScaleDtype, positive: bool, of_mlps_alone: bool = False
) -> list[WeightGroup]:
    """The groups of a model: in each layer q, k and v; o; all routed experts; gate and up, and down, of the shared
    expert or the dense MLP; the embedding and the head. Routers and norms stay float, and so do groups whose widths no
    block divides.

    `scale_dtype` and `positive` are those of the schemes. With `of_mlps_alone` attention, head and embedding stay
    float too.
    """
    grouped: dict[tuple[int | None, str], dict[str, tuple[int, ...]]] = {}
    for name, shape in tensors(config).items():
        kind = kind_of(name)
        if kind not in _FLOAT and (kind in _MLPS or not of_mlps_alone):
            down = "down_proj" in name and kind not in _TOGETHER
            key = layer_of(name), _TOGETHER.get(kind, f"{kind}{' down' if down else ''}")
            grouped.setdefault(key, {})[name] = shape
    schemes = [Scheme(kind, block, True, scale_dtype, positive) for kind, block in _CHOICES]
    groups = []
    for shapes in grouped.values():
        widths = [shape[1] for shape in shapes.values()]  # of [out, in] and [experts, in, out]
        choices = tuple(s for s in schemes if not any(width % s.block_size for width in widths))
        if choices:
            groups.append(WeightGroup(shapes, choices))
    return groups


def allocate(sizes: Sequence[Sequence[int]], damage: Sequence[Sequence[float]], budget: int) -> list[int]:
    """One choice for each group, such that their `sizes` fit into `budget` and their `damage` adds up to the least.

    The multiple-choice knapsack by dynamic programming: with best_g(b) the least damage of the first g groups in b
    bytes beyond everybody's smallest, `best_g(b) = min over choices c of damage[g][c] + best_{g-1}(b - extra[g][c])`.
    Bytes are counted in steps, rounded up: the result fits always, and is the best but for a step a group.

    Raises:
        ValueError: the smallest choices do not fit.
    """
    room = budget - sum(map(min, sizes))
    if room < 0:
        raise ValueError(f"{budget} bytes are {-room} too few")
    unit = max(1, math.ceil(room / _UNITS))
    steps = [[math.ceil((size - min(row)) / unit) for size in row] for row in sizes]
    cells = room // unit + 1
    best: NDArray[np.float64] = np.zeros(cells)
    picks = []
    for row, harm in zip(steps, damage, strict=True):
        tried = np.full((len(row), cells), np.inf)
        for choice, (step, cost) in enumerate(zip(row, harm, strict=True)):
            if step < cells:
                tried[choice, step:] = best[: cells - step] + cost
        picks.append(tried.argmin(axis=0).astype(np.uint8))
        best = tried.min(axis=0)
    at, chosen = cells - 1, []
    for row, pick in zip(reversed(steps), reversed(picks), strict=True):
        chosen.append(int(pick[at]))
        at -= row[chosen[-1]]
    return chosen[::-1]


def policy_of(groups: Iterable[WeightGroup], schemes: Iterable[Scheme]) -> Policy:
    """The policy that gives each group its scheme: a rule for each scheme in use, by the weights' names."""
    names: dict[Scheme, list[str]] = {}
    for group, scheme in zip(groups, schemes, strict=True):
        names.setdefault(scheme, []).extend(group.shapes)
    ordered = sorted(names, key=lambda scheme: scheme.name)
    return Policy(tuple(Rule(tuple(names[scheme]), scheme.kind, scheme.block_size) for scheme in ordered))
