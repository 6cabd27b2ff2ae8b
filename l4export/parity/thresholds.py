"""What parity demands of an engine, which depends on the precision of its arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from l4export.engine.described import Described
from l4export.errors import EnvironmentLacks, InputError
from l4export.parity.image_thresholds import IMAGE_FIGURES, image_thresholds
from l4export.quantization.policy import Rule
from l4export.reports.verdict import check_thresholds
from l4export.targets import CHECKPOINT_TARGETS, TARGETS

__all__ = ["DEFAULT_THRESHOLDS", "Demands"]

DEFAULT_THRESHOLDS: Mapping[str, float] = {
    "max_relative_difference": 1e-4,
    "kl_max": 1e-6,
    "top1_agreement": 1.0,
    "greedy_prefix": 1.0,
}
"""For engines that compute in float32. Measured differences are about 1e-6 of the largest |logit| (float32 sums in
another order), so 1e-4 leaves room for deep models, but none for a wrong operation."""

_FP16_THRESHOLDS: Mapping[str, float] = {"max_relative_difference": 3e-2, "kl_max": 1e-2, "top1_agreement": 0.98}
"""float16 has 11 bits. Differences of 1e-3 of the largest logit are normal in four layers, and more layers add up."""

_INT8_ACTIVATION_THRESHOLDS: Mapping[str, float] = {"kl_mean": 5e-2}
"""For activations that are rounded to int8, in float32 and in float16. They move every product by up to 0.4 %, and a
router's near tie may choose another expert."""

_FP16_ROUTING = 1e-2
"""float16 moves router logits by up to this share of the largest, after 48 layers of random weights."""

_INT8_ROUTING = 0.1
"""The same share with activations rounded to int8. After 48 layers of random weights experts changed places across a
tenth of the largest logit, and two may move towards each other."""

_FP8_ACTIVATION_THRESHOLDS: Mapping[str, float] = {"kl_mean": 1e-3, "top1_agreement": 0.98}
"""Both sides round activations to fp8 in the same way, so in float32 logits agree to the bit. But a value halfway
between two codes may be rounded either way, and a step is up to 12 % of a value. In float16 this happens to more
values from layer to layer, and nothing can be demanded."""

_DIFFERENCES = ("max_abs_difference", "max_relative_difference", "mean_abs_difference", "kl_mean", "kl_max")
_THRESHOLDS = (*_DIFFERENCES, "top1_agreement", "top5_overlap", "greedy_prefix")


@dataclass(frozen=True)
class Demands:
    """What is demanded of an engine, and which differences are no fault.

    `thresholds` limit figures by name. `accepted` is the largest difference that is no fault, as a share of the largest
    |logit|. Two tokens are nearly tied if their logits are within twice this difference. `tied` says how far a router's
    logits may be off, as a share of the largest. Where experts are nearly tied by this measure, the reference follows
    the engine. If `tied` is None it never follows, because the other choices of a quantised engine are part of its
    quality.
    """

    thresholds: dict[str, float]
    accepted: float
    tied: float | None

    @classmethod
    def of(
        cls,
        manifest: Described,
        given: Mapping[str, float],
        prefill: int,
        decode: int,
        dequantized: bool,
        images: bool = False,
    ) -> Demands:
        """Return the demands of an engine's precision. Thresholds that are `given` replace its own.

        `dequantized` says that the reference has the engine's own weights, and `images` that there are images, which
        are computed in the precision of the vision tower.

        Raises:
            InputError: a threshold is unknown, or of a greedy continuation of no tokens; there are more tokens than the
                engine takes, or no token of prefill; the tower's weights are quantised and those of the reference are
                to be `dequantized`.
        """
        images = images and manifest.vision is not None  # an engine that sees none refuses them
        check_thresholds(given, (*_THRESHOLDS, *(IMAGE_FIGURES if images else ())))
        if prefill < 1 or decode < 0 or prefill + decode > manifest.max_context:
            raise InputError(
                f"--prefill {prefill} --decode {decode}: together at least 1 token of prefill and at most the engine's "
                f"max_context of {manifest.max_context}"
            )
        judged = _judges_arithmetic(manifest, dequantized)
        used = ("compute", "kv_cache", *(("vision",) if images else ()), *(() if dequantized else ("weights",)))
        half = any(manifest.precision[name] != "fp32" for name in used)
        if not decode and "greedy_prefix" in given:
            raise InputError("--threshold greedy_prefix: nothing is generated with --decode 0; leave one of them out")
        of_images = image_thresholds(manifest, dequantized) if images else {}
        thresholds = {**of_images, **(_default_thresholds(manifest, half) if judged else {}), **given}
        most = thresholds.get("max_relative_difference")
        accepted = DEFAULT_THRESHOLDS["max_relative_difference"] if most is None else most
        routing = _routing(manifest, half)
        tied = routing if most is None else min(routing, most)
        demands = cls(thresholds, accepted, tied if judged else None)
        return demands if decode else demands.without("greedy_prefix")

    def of_compared(self, not_compared: Mapping[str, str], given: Mapping[str, float]) -> Demands:
        """Return the demands without those on figures that could not be measured, for the reasons `not_compared`.

        Raises:
            EnvironmentLacks: a threshold that a person has given is among them.
        """
        for name, reason in not_compared.items():
            if name in given:
                raise EnvironmentLacks(f"--threshold {name}: {reason}; leave it out, or install what is missing")
        left = {name: limit for name, limit in self.thresholds.items() if name not in not_compared}
        return dataclasses.replace(self, thresholds=left)

    def without(self, name: str) -> Demands:
        """Return the demands without one threshold, for a figure that is not measured."""
        left = {other: limit for other, limit in self.thresholds.items() if other != name}
        return dataclasses.replace(self, thresholds=left)


def _default_thresholds(manifest: Described, half: bool) -> Mapping[str, float]:
    """Return those of an engine; `half` says that something is computed or stored in 16 bits."""
    if manifest.precision["activations"] == "fp8":
        return _FP8_ACTIVATION_THRESHOLDS if manifest.precision["compute"] == "fp32" else {}
    if _rounds_activations(manifest):
        return _INT8_ACTIVATION_THRESHOLDS
    return _FP16_THRESHOLDS if half else DEFAULT_THRESHOLDS


def _judges_arithmetic(manifest: Described, dequantized: bool) -> bool:
    """Whether a comparison judges how the engine computes, and not what its quantisation costs."""
    rules = manifest.options["weights"].get("policy", {"rules": []})["rules"]
    as_it_is = dequantized or all(rule.get("as_stored", False) for rule in rules)
    return as_it_is and manifest.precision["kv_cache"] not in ("int8", "int4")


def _routing(manifest: Described, half: bool) -> float:
    """Return how far an engine's arithmetic may move the logits of a router, as a share of the largest."""
    if _rounds_activations(manifest):
        return _INT8_ROUTING
    return _FP16_ROUTING if half else DEFAULT_THRESHOLDS["max_relative_difference"]


def _rounds_activations(manifest: Described) -> bool:
    """Whether activations are rounded to int8. They are at level 4, and by ONNX Runtime before int8 experts at any."""
    policy = manifest.options["weights"].get("policy")
    if policy is None or manifest.target in CHECKPOINT_TARGETS:
        return False
    if manifest.target not in TARGETS:
        raise InputError(f"target {manifest.target!r} is none that this l4export builds for; upgrade l4export")
    target = TARGETS[manifest.target]
    if not target.rounds_activations:
        return False
    experts = [f"model.layers.{layer}.feed_forward.experts.down_proj" for layer in manifest.model.moe_layers]
    integers = [rule for rule in policy["rules"] if rule["kind"] != "fp8"]
    at_8_bits = [Rule(tuple(r["weights"]), "int8", but=tuple(r["but"])) for r in integers if r["kind"] == "int8"]
    int8_experts = any(rule.matches(name) for rule in at_8_bits for name in experts)
    return bool(integers) and (policy["accuracy_level"] == 4 or (target.always_rounds and int8_experts))
