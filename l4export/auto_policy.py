"""`--quant auto`: the damage of every choice measured, the best ones taken, and what was expected held against what came.

For every group of weights and every scheme KL(reference || reference with only this group rounded so) is measured on a
text, with the layer-streamed reference. The policy is the one whose KLs add up to the least within the budget
(`l4export.bit_allocation`); then all of it together is measured on the same text, since damages do not quite add up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.bit_allocation import WeightGroup, allocate, policy_of, weight_groups
from l4export.build_plan import BuildOptions, plan_build
from l4export.calibration_text import CalibrationText, read_auto_text
from l4export.errors import InputError
from l4export.policy import Policy
from l4export.quantization.gptq import QuantizedMatrix
from l4export.quantization.schemes import Scheme
from l4export.weight_bytes import weight_bytes

if TYPE_CHECKING:
    from l4export.streamed_reference import StreamedReference
    from l4export.variants import Variant

__all__ = ["AutoPolicy", "choose_policy"]


@dataclass(frozen=True)
class AutoPolicy:
    """A policy that was chosen by measurement.

    `budget` and `bits_per_weight` (what it came to) count everything that is stored of the model, scales and float
    weights too, for each of its parameters. `predicted_kl` is the sum of what the groups cost alone, `measured_kl` what
    they cost together, in nats a token on `text`.
    """

    policy: Policy
    budget: float
    bits_per_weight: float
    predicted_kl: float
    measured_kl: float
    text: CalibrationText
    groups: tuple[tuple[WeightGroup, Scheme, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """For manifests. KLs have four digits: sums differ from machine to machine in the last bits."""
        return {
            "budget": self.budget,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "predicted_kl": _rounded(self.predicted_kl),
            "measured_kl": _rounded(self.measured_kl),
            "text": self.text.to_dict(),
            "groups": [
                {"weights": list(group.shapes), "scheme": scheme.name, "kl": _rounded(kl)}
                for group, scheme, kl in self.groups
            ],
        }


def choose_policy(
    checkpoint: Path, options: BuildOptions, bits: float, on_step: Callable[[str], None] | None = None
) -> AutoPolicy:
    """The policy of least damage for a build with `options` (whose policy is not looked at) in `bits` per weight.

    It is measured on the beginning of the text that the build is calibrated on, or else of the default text.

    Raises:
        InputError: a budget that no choice fits, or that every choice fits; what `plan_build` refuses.
        EnvironmentLacks: torch or transformers is missing.
    """
    smallest, groups = _smallest(checkpoint, options)
    config = smallest.config
    stored = round(sum(weight_bytes(smallest.model, config).values()))
    sizes = [[group.nbytes(scheme) for scheme in group.choices] for group in groups]
    parameters = config.parameter_count().total
    largest = stored + sum(max(row) - min(row) for row in sizes)
    low, high = 8 * stored / parameters, 8 * largest / parameters
    if not low <= bits <= high:
        raise InputError(
            f"--bits-per-weight {bits:g}: the schemes reach {_up(low):g} to {_up(high):g} for this model, with scales and "
            "all that stays float; choose one between"
        )
    text = read_auto_text(options.calibrate, checkpoint, config)
    from l4export.streamed_reference import StreamedReference

    reference = StreamedReference(checkpoint, options.layers)
    measure = _Measurement(reference, text, on_step or (lambda _: None))
    damage = measure.groups(groups)
    others = stored - sum(map(min, sizes))
    chosen = allocate(sizes, damage, int(bits * parameters / 8) - others)
    taken = [(group, group.choices[at], row[at]) for group, at, row in zip(groups, chosen, damage, strict=True)]
    schemes = [scheme for _, scheme, _ in taken]
    return AutoPolicy(
        policy=policy_of(groups, schemes),
        budget=bits,
        bits_per_weight=8 * (others + sum(row[at] for row, at in zip(sizes, chosen, strict=True))) / parameters,
        predicted_kl=sum(kl for _, _, kl in taken),
        measured_kl=measure.together(groups, schemes),
        text=text,
        groups=tuple(taken),
    )


def _smallest(checkpoint: Path, options: BuildOptions) -> tuple[Any, list[WeightGroup]]:
    """The plan with every group's smallest scheme: what cannot be built is refused before anything is measured."""
    plain = plan_build(checkpoint, dataclasses.replace(options, policy=None, calibrate=None, dump_ir=None))
    groups = weight_groups(plain.config, half=options.dtype != "fp32", positive=options.target != "ort-cpu")
    if not groups:
        raise InputError("--quant auto: no block of 32, 64 or 128 divides a width of this model; use a policy")
    policy = policy_of(groups, [group.choices[0] for group in groups])
    return plan_build(checkpoint, dataclasses.replace(options, policy=policy, dump_ir=None)), groups


class _Measurement:
    """KLs on one text."""

    def __init__(self, reference: StreamedReference, text: CalibrationText, on_step: Callable[[str], None]) -> None:
        self.reference, self.text, self.on_step = reference, text, on_step

    def groups(self, groups: Sequence[WeightGroup]) -> list[list[float]]:
        """Of every choice of every group, alone."""
        variants = [self.variant([group], [scheme]) for group in groups for scheme in group.choices]
        found = iter(self.run(variants, f"{len(variants)} choices"))
        return [[next(found) for _ in group.choices] for group in groups]

    def together(self, groups: Sequence[WeightGroup], schemes: Sequence[Scheme]) -> float:
        """Of all groups at once."""
        return self.run([self.variant(groups, schemes)], "the choice")[0]

    def variant(self, groups: Sequence[WeightGroup], schemes: Sequence[Scheme]) -> Variant:
        """The reference with these groups rounded."""
        from l4export.variants import Variant

        by_name = {name: scheme for group, scheme in zip(groups, schemes, strict=True) for name in group.shapes}
        shapes = {name: shape for group in groups for name, shape in group.shapes.items()}
        return Variant(frozenset(by_name), _RoundedWeights(self.reference, shapes, by_name).rows)

    def run(self, variants: Sequence[Variant], what: str) -> list[float]:
        """Mean KL of each variant."""
        from l4export.variants import compare_variants

        windows = self.text.sequences

        def on_layer(window: int, layer: int) -> None:
            self.on_step(f"measuring {what}: window {window + 1} of {len(windows)}, layer {layer + 1}")

        pieces = [piece.kl for piece in compare_variants(self.reference, variants, windows, on_layer)]
        means: list[float] = np.concatenate(pieces, axis=1).mean(axis=1).tolist()
        return means


@dataclass(frozen=True, eq=False)
class _RoundedWeights:
    """A model's weights rounded to nearest by the schemes given, for `StreamedReference.with_weights`."""

    reference: StreamedReference
    shapes: Mapping[str, tuple[int, ...]]
    schemes: Mapping[str, Scheme]

    def rows(self, name: str, rows: slice) -> NDArray[np.float32] | None:
        """Rows of a weight [N, K], or experts of a weight [E, K, N]; None for one without a scheme."""
        if name not in self.schemes:
            return None
        values, scheme = self.reference.weight(name, self.shapes[name], rows), self.schemes[name]
        if values.ndim == 2:
            return QuantizedMatrix.rounded(values, scheme).values
        matrices = [np.ascontiguousarray(matrix.T) for matrix in values]
        return np.stack([QuantizedMatrix.rounded(matrix, scheme).values.T for matrix in matrices])


def _rounded(kl: float) -> float:
    return float(f"{kl:.4g}")


def _up(bits: float) -> float:
    """Three digits behind the point, rounded up."""
    return float(np.ceil(bits * 1000) / 1000)
