"""What the reports of `l4export parity` show beside their figures."""

from __future__ import annotations

from collections.abc import Iterator

from l4export.evidence.exercised import boundary_marks
from l4export.evidence.worst_tokens import worst_tokens_table
from l4export.parity.by_layer import LayerParityReport
from l4export.parity.whole_model import ParityReport
from l4export.reports.sections import Counts, Curve, Section, Table, by_decade, histogram, thinned

__all__ = ["sections_of"]


def sections_of(report: ParityReport | LayerParityReport) -> tuple[Section, ...]:
    """Layers first, if they were compared; then positions, KL, near ties and the worst tokens."""
    return (
        *(_of_layers(report) if isinstance(report, LayerParityReport) else ()),
        _along_positions(report),
        histogram("KL of the positions", by_decade(report.positions.kl), "positions by KL, in nats"),
        _ties(report),
        worst_tokens_table(report.positions.worst),
    )


def _along_positions(report: ParityReport | LayerParityReport) -> Curve:
    count = len(report.positions.difference)
    marks, marked = boundary_marks(report.chunk_size if report.chunk_boundaries else None, count)
    return Curve(
        title="Difference along the positions",
        points=thinned(report.positions.difference),
        across="position",
        axis="max |difference| of the largest |logit|",
        logarithmic=True,
        marks=marks,
        marked=marked,
        limit=report.thresholds.get("max_relative_difference"),
        note=f"Decoding begins at position {report.prefill_tokens}." if report.decode_tokens else "",
    )


def _ties(report: ParityReport | LayerParityReport) -> Table:
    """Where the likeliest tokens or experts differ, but are nearly tied, so that rounding decides."""
    if isinstance(report, LayerParityReport):
        rows = [("tokens, positions that are not counted as disagreeing", f"{report.logits.near_ties}")]
        rows += [
            (
                f"experts of layer {layer.layer}, tokens for which the reference followed the engine",
                f"{layer.near_ties}",
            )
            for layer in report.layers
            if layer.near_ties is not None
        ]
    else:
        phases = [("prefill", report.prefill), ("decode", report.decode)]
        rows = [(f"tokens of {name}, not counted as disagreeing", f"{of.near_ties}") for name, of in phases if of]
        rows += [
            ("experts, choices in which the reference followed the engine", f"{report.routing_ties}"),
            ("the greedy continuation ended at one", "yes" if report.greedy_ended_at_near_tie else "no"),
        ]
    return Table("Near ties", ("of", "how many"), tuple(rows), numeric=frozenset({1}))


def _of_layers(report: LayerParityReport) -> Iterator[Section]:
    first = report.first_departure
    yield Curve(
        title="Layer by layer",
        points=tuple((layer.layer, layer.hidden) for layer in report.layers),
        across="layer",
        axis="max |difference| of hidden states, of the largest",
        logarithmic=True,
        marks=() if first is None else (first,),
        marked="" if first is None else "the first layer to depart",
        limit=report.layer_thresholds.get("hidden"),
        note="No layer departs." if first is None else f"Layer {first} is the first to depart.",
    )
    chosen = [(f"{layer.layer}", layer.experts_chosen) for layer in report.layers if layer.experts_chosen is not None]
    if chosen:
        yield Counts(
            title="Experts chosen",
            corner="layer",
            head=tuple(f"{expert}" for expert in range(len(chosen[0][1]))),
            rows=tuple(chosen),
            note="Tokens for which the engine chose each expert, by layer. An expert with 0 was not exercised.",
        )
