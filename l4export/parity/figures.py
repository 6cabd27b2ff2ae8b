"""The figures of the parity reports, by the phases in which they were measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from l4export.parity.by_layer import LayerParityReport
from l4export.parity.images import ImageComparison
from l4export.parity.logits import LogitComparison
from l4export.parity.tower import TowerComparison
from l4export.parity.whole_model import ParityReport
from l4export.reports.figure import Figure
from l4export.reports.verdict import is_missed

__all__ = ["figures_of"]

_LOGITS = (
    ("max_abs_difference", "max |difference|", ".3g"),
    ("max_relative_difference", "max |difference| of the largest |logit|", ".3g"),
    ("mean_abs_difference", "mean |difference|", ".3g"),
    ("kl_mean", "KL(reference || engine), mean", ".3g"),
    ("kl_max", "KL(reference || engine), max", ".3g"),
    ("top1_agreement", "top-1 agreement", ".4f"),
    ("near_ties", "near ties apart", "d"),
    ("top5_overlap", "top-5 overlap", ".4f"),
)
_IMAGES = (
    ("ids_agreement", "equal ids of a prompt", ".4f"),
    ("pixel_difference", "pixels, max |difference|", ".3g"),
    ("max_feature_difference", "features, max |difference|", ".3g"),
    ("feature_difference", "features, max |difference| of the largest", ".3g"),
    ("mean_feature_difference", "features, mean |difference|", ".3g"),
)
_LAYER = (
    ("hidden", "hidden", ".3g"),
    ("hidden_rms", "hidden, rms", ".3g"),
    ("keys", "keys", ".3g"),
    ("values", "values", ".3g"),
    ("router", "router", ".3g"),
    ("expert_agreement", "expert agreement", ".4f"),
    ("near_ties", "near ties", "d"),
)


def figures_of(report: ParityReport | LayerParityReport) -> tuple[Figure, ...]:
    """All figures of a comparison, with the thresholds that they were compared with, in the order of the work."""
    limits = report.thresholds
    found = list(_of_images(report.images, limits)) if report.images else []
    if isinstance(report, LayerParityReport):
        if report.tower:
            found += _of_tower(report.tower)
        return (*found, *_of_layers(report), *_of_logits("logits", report.logits, limits))
    for name, phase in (("prefill", report.prefill), ("decode", report.decode)):
        found += _of_logits(name, phase, limits) if phase else []
    return (*found, *_of_greedy(report))


def _of_logits(phase: str, logits: LogitComparison, limits: Mapping[str, float]) -> list[Figure]:
    return [
        Figure(phase, name, label, getattr(logits, name), form, threshold=limits.get(name))
        for name, label, form in _LOGITS
    ]


def _of_greedy(report: ParityReport) -> list[Figure]:
    """The share of the greedy continuation; what a near tie kept it from reaching is not demanded."""
    if not report.greedy_tokens:
        return []
    remark, limit = "", report.thresholds.get("greedy_prefix")
    if report.greedy_ended_at_near_tie:
        remark = "it ended at a near tie, and later tokens cannot be compared"
        limit = None if limit is None or is_missed("greedy_prefix", report.greedy_prefix, limit) else limit
    label = f"share of {report.greedy_tokens} greedy tokens before a departure"
    return [Figure("greedy", "greedy_prefix", label, report.greedy_prefix, ".4f", threshold=limit, remark=remark)]


def _of_images(images: ImageComparison, limits: Mapping[str, float]) -> Iterator[Figure]:
    values, reasons = {**vars(images), **vars(images.processor)}, images.processor.not_compared
    for name, label, form in _IMAGES:
        yield Figure(
            "images", name, label, values[name], form, threshold=limits.get(name), remark=reasons.get(name, "")
        )


def _of_tower(tower: TowerComparison) -> Iterator[Figure]:
    for stage in tower.stages:
        phase = f"vision tower, {stage.stage}"
        yield Figure(phase, "difference", "difference", stage.difference, ".3g", threshold=stage.threshold)
        yield Figure(phase, "difference_rms", "difference, rms", stage.difference_rms, ".3g")


def _of_layers(report: LayerParityReport) -> Iterator[Figure]:
    for layer in report.layers:
        for name, label, form in _LAYER:
            phase, value = f"layer {layer.layer}", getattr(layer, name)
            if value is not None:
                yield Figure(phase, name, label, value, form, threshold=report.layer_thresholds.get(name))
            elif name in ("keys", "values"):  # the others are None where a dense layer has no such thing
                yield Figure(phase, name, label, None, form, remark="the cache does not hold all of them as floats")
