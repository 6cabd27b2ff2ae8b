"""How far each layer of an engine departs from the reference's, which follows it where experts are nearly tied."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.inspection.taps import EngineTaps
from l4export.parity.thresholds import Demands
from l4export.reference.routing_ties import followed_choices
from l4export.reference.streamed_model import StreamedReference
from l4export.reports.verdict import is_missed

if TYPE_CHECKING:
    from l4export.reference.streamed_layer import LayerTaps

__all__ = ["LayerComparison", "LayerWalk", "layer_limits"]


@dataclass(frozen=True)
class LayerComparison:
    """How far one layer departs, over all positions. `layer` is the layer's number in the checkpoint.

    `hidden`, `keys`, `values` and `router` (its logits) are max |difference| divided by the reference's largest
    |value|. `hidden_rms` is the root mean square of the difference divided by that of the reference. `keys` and
    `values` are None if the engine's cache does not hold all of them in its float type. `expert_agreement` is the share
    of positions with the same experts. If the experts of a position differ, but the reference's own logits are nearly
    tied between them, the position is counted in `near_ties` instead. The reference then continues with the engine's
    experts (`l4export.reference.routing_ties`), so that later layers do not depart only because of this.
    `experts_chosen` counts the tokens for which the engine chose each expert. These three and `router` are None in a
    dense layer.
    """

    layer: int
    hidden: float
    hidden_rms: float
    keys: float | None
    values: float | None
    router: float | None
    expert_agreement: float | None
    near_ties: int | None
    experts_chosen: tuple[int, ...] | None

    def departures(self, limits: Mapping[str, float]) -> list[str]:
        """Describe what misses `limits` by name; what is None misses nothing."""
        found = []
        for name in ("keys", "values", "router", "hidden", "expert_agreement"):
            value = getattr(self, name)
            if name in limits and value is not None and is_missed(name, value, limits[name]):
                how = f"{value:.3g}" if name == "expert_agreement" else f"by {value:.3g} of the largest"
                found.append(f"{name} {how}, threshold {limits[name]:g}")
        return found


def layer_limits(demands: Demands) -> dict[str, float]:
    """What is demanded of every layer, by the names of `LayerComparison`.

    If the reference follows the engine in ties, a router's logits must be within twice `demands.tied`, too. Otherwise a
    wrong router would be followed.
    """
    most, least = (demands.thresholds.get(name) for name in ("max_relative_difference", "top1_agreement"))
    router = min((limit for limit in (most, demands.tied and 2 * demands.tied) if limit is not None), default=None)
    limits = {"hidden": most, "keys": most, "values": most, "router": router, "expert_agreement": least}
    return {name: limit for name, limit in limits.items() if limit is not None}


@dataclass(frozen=True)
class LayerWalk:
    """The comparison of the reference's layers, in turn, with what the engine computed for the same T tokens.

    The reference follows the engine where experts are nearly tied (`Demands.tied`). `first` is the checkpoint's number
    of the first layer.
    """

    reference: StreamedReference
    engine: EngineTaps
    demands: Demands
    first: int

    def compare(
        self, hidden: NDArray[np.float32], on_layer: Callable[[int], None]
    ) -> tuple[list[LayerComparison], NDArray[np.float32]]:
        """Compare every layer, from the residual stream `hidden` [1, T, D] before the first.

        Also returns that after the last.

        `on_layer` is called with the number of each layer.
        """
        compared = []
        for layer in range(self.reference.config.num_hidden_layers):
            taps, experts = self.follow(layer, hidden)
            compared.append(self.compare_layer(layer, taps, experts))
            hidden = taps.hidden
            on_layer(self.first + layer)
        return compared, hidden

    def follow(self, layer: int, hidden: NDArray[np.float32]) -> tuple[LayerTaps, NDArray[np.int64] | None]:
        """Run the reference's layer on hidden [1, T, D]. Returns its values and the engine's experts [T, k].

        If the engine may have made one of two choices, the one whose result is nearer to the engine's is taken for each
        token. After attention, tokens do not depend on each other.
        """
        options, tied = self.engine.experts[layer], self.demands.tied
        if tied is None or not options:
            return self.reference.step(layer, hidden)[0], options[0] if options else None
        ways = [partial(_choose, theirs=theirs, tied=tied) for theirs in options]
        runs = self.reference.step(layer, hidden, ways)
        best = np.argmin([np.abs(run.hidden[0] - self.engine.hidden[layer]).max(axis=1) for run in runs], axis=0)
        rows = np.arange(len(best))
        nearest = np.stack([run.hidden[0] for run in runs])[best, rows]
        return dataclasses.replace(runs[0], hidden=nearest[None]), np.stack(options)[best, rows]

    def compare_layer(self, layer: int, taps: LayerTaps, experts: NDArray[np.int64] | None) -> LayerComparison:
        """Compare the engine's values with those of the reference. `experts` are the engine's."""
        engine, hidden, router = self.engine, taps.hidden[0], None
        difference = engine.hidden[layer].astype(np.float64) - hidden
        scale = float(np.sqrt(np.mean(hidden.astype(np.float64) ** 2)))
        agreement, ties, chosen = None, None, None
        if taps.router_logits is not None and experts is not None:
            router = _relative(taps.router_logits[0], engine.router_logits[layer])
            tied = self.demands.tied or self.demands.accepted
            _, differ, near = followed_choices(taps.router_logits[0], experts, tied)
            agreement, ties = float(1 - (differ & ~near).mean()), int(near.sum())
            chosen = tuple(np.bincount(experts.ravel(), minlength=taps.router_logits.shape[-1]).tolist())
        return LayerComparison(
            layer=self.first + layer,
            hidden=_relative(hidden, engine.hidden[layer]),
            hidden_rms=float(np.sqrt(np.mean(difference**2))) / (scale or 1.0),
            keys=_relative(taps.keys[0], engine.keys[layer]),
            values=_relative(taps.values[0], engine.values[layer]),
            router=router,
            expert_agreement=agreement,
            near_ties=ties,
            experts_chosen=chosen,
        )


def _choose(logits: NDArray[np.float32], theirs: NDArray[np.int64], tied: float) -> NDArray[np.int64]:
    return followed_choices(logits, theirs, tied)[0]


def _relative(reference: NDArray[np.float32], engine: NDArray[np.float32] | None) -> Any:
    """Return max |difference| over the reference's largest |value|: NaN if `engine` has a NaN, None if it is None."""
    if engine is None:
        return None
    return float(np.abs(engine.astype(np.float64) - reference).max()) / (float(np.abs(reference).max()) or 1.0)
