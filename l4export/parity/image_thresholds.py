"""What parity demands of what an engine sees, which depends on the precision of its vision tower."""

from __future__ import annotations

from collections.abc import Mapping

from l4export.engine.described import Described
from l4export.errors import InputError
from l4export.model.tensors import vision_tensors
from l4export.quantization.policy import Rule

__all__ = ["IMAGE_FIGURES", "image_thresholds"]

IMAGE_FIGURES = ("ids_agreement", "pixel_difference", "feature_difference")
"""Figures of `l4export.parity.images` that may have a threshold."""

_EQUAL: Mapping[str, float] = {"ids_agreement": 1.0, "pixel_difference": 0.0}
"""Ids are integers, and pixel values are integers that go through the same table."""

_COMPUTED = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2}
"""Share of the largest feature by which a tower of 34 layers may be off. In float32 sums in another order make 2e-6,
and the smallest mistake that is known (a norm's epsilon) 1e-5 and more; float16 makes up to 3.4e-3 with random weights
and bfloat16 2.3e-2."""

_STORED = {"fp32": 0.0, "fp16": 2.0**-10, "bf16": 2.0**-7}
"""Features are rounded once more to the decoder's dtype: by half a step, which is 2^-11 and 2^-8 of a value."""

_INT8 = 0.1
"""Of a tower with weights of 8 bits against those of the checkpoint: 2.2e-2 in two layers, and more add up. Of 4 bits
nothing is demanded: 0.28."""


def image_thresholds(manifest: Described, dequantized: bool) -> dict[str, float]:
    """Return the thresholds for an engine with a vision tower.

    Raises:
        InputError: the reference is to have the engine's own weights, `dequantized`, and the tower's are quantised.
    """
    kinds = _kinds(manifest)
    if kinds and dequantized:
        raise InputError(
            "--dequantized: the vision tower is quantised too, and the reference's has the checkpoint's weights; "
            "leave it out, or compare without images"
        )
    if kinds - {"int8"}:
        return dict(_EQUAL)
    most = max(_COMPUTED[manifest.precision["vision"]], _STORED[manifest.precision["compute"]], _INT8 if kinds else 0.0)
    return {**_EQUAL, "feature_difference": most}


def _kinds(manifest: Described) -> set[str]:
    """The kinds of numbers to which weights of the tower are quantised."""
    policy = manifest.options["weights"].get("policy")
    if policy is None or manifest.vision is None:
        return set()
    names = vision_tensors(manifest.vision, manifest.model.hidden_size)
    rules = [Rule(tuple(rule["weights"]), rule["kind"], but=tuple(rule["but"])) for rule in policy["rules"]]
    return {rule.kind for rule in rules if any(map(rule.matches, names))}
