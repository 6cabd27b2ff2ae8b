"""`--quant auto`: the damage of every choice measured, the best ones taken, and the prediction held against the result.

For every group of weights and every scheme KL(reference || reference with only this group rounded so) is measured on a
text, with the layer-streamed reference. The policy is the one whose KLs add up to the least within the budget
(`l4export.compiler.bit_allocation`); then all of it together is measured on the same text, since damages do not quite
add up.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.calibration.text import CalibrationText
from l4export.compiler.bit_allocation import WeightGroup, allocate, policy_of, weight_groups
from l4export.compiler.inputs import BuildInputs
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.graph.dtypes import FLOATS
from l4export.model.config import ModelConfig
from l4export.model.tensors import parameter_count, tensors
from l4export.quantization.gptq import QuantizedMatrix
from l4export.quantization.policy import Policy
from l4export.quantization.schemes import ScaleDtype, Scheme
from l4export.targets import TARGETS

if TYPE_CHECKING:
    from l4export.reference.streamed_model import StreamedReference
    from l4export.reference.variants import Variant

__all__ = ["AutoPolicy", "PolicyChooser", "WeightChoice", "with_chosen_policy"]

_STREAMS_BYTES = 1 << 30
"""Of the residual streams of choices that are measured together."""


@dataclass(frozen=True)
class AutoPolicy:
    """A policy that was chosen by measurement.

    `budget` and `bits_per_weight` (what it came to) count everything that is stored of the model, scales and float
    weights too, for each of its parameters. `predicted_kl` is the sum of what the groups cost alone, `measured_kl` what
    they cost together, in nats a token on `text`.
    """

    rules: Policy
    budget: float
    bits_per_weight: float
    predicted_kl: float
    measured_kl: float
    text: CalibrationText
    groups: tuple[tuple[WeightGroup, Scheme, float], ...]

    @property
    def policy(self) -> Policy:
        """The rules, which carry how they were chosen."""
        return dataclasses.replace(self.rules, origin=self.to_dict())

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


@dataclass(frozen=True)
class WeightChoice:
    """Between which schemes there is to choose, and what the weights cost that none is for.

    Attributes:
        float_bits: Of a weight that stays float.
        scale_dtype: Of the schemes.
        positive: Whether schemes have positive scales only.
        of_mlps_alone: Whether attention, head and embedding stay float.
    """

    float_bits: int
    scale_dtype: ScaleDtype
    positive: bool
    of_mlps_alone: bool = False

    @classmethod
    def of_engine(cls, options: BuildOptions) -> WeightChoice:
        """What an engine's target has operators for."""
        target = TARGETS[options.target]
        scale_dtype: ScaleDtype = "float16" if options.float_dtype == "fp16" else target.scale_dtype
        return cls(FLOATS[options.float_dtype].bitwidth, scale_dtype, target.positive_scales)


def with_chosen_policy(
    inputs: BuildInputs, options: BuildOptions, choice: WeightChoice, on_step: Callable[[str], None] | None
) -> BuildOptions:
    """The options with the policy of least damage in `options.bits_per_weight`. Raises as `PolicyChooser.choose`."""
    from l4export.reference.transformers_model import check_reference_packages

    check_reference_packages()
    assert options.bits_per_weight is not None
    chosen = PolicyChooser(inputs, options.layers, choice, on_step).choose(options.bits_per_weight)
    return dataclasses.replace(options, policy=chosen.policy, bits_per_weight=None)


class PolicyChooser:
    """Chooses policies for a model, or for the `layers` A to B - 1 of it.

    Damage is measured on `inputs.texts.damage`, when `choose` is first called. `on_step` receives a line about each
    measurement.

    Raises:
        InputError: a model that no block fits.
    """

    def __init__(
        self,
        inputs: BuildInputs,
        layers: tuple[int, int] | None,
        choice: WeightChoice,
        on_step: Callable[[str], None] | None = None,
    ) -> None:
        assert inputs.texts.damage is not None
        self.inputs, self.layers, self.on_step = inputs, layers, on_step or (lambda _: None)
        self.config, self.text = inputs.config, inputs.texts.damage
        self.groups = weight_groups(self.config, choice.scale_dtype, choice.positive, choice.of_mlps_alone)
        if not self.groups:
            raise InputError("--quant auto: no block of 32, 64 or 128 divides a width of this model; leave it out")
        self._sizes = [[group.nbytes(scheme) for scheme in group.choices] for group in self.groups]
        self._others = _float_bytes(self.config, self.groups, choice.float_bits)
        self._parameters = parameter_count(self.config).total

    def choose(self, bits: float) -> AutoPolicy:
        """The policy of least damage in `bits` per weight.

        Raises:
            InputError: a budget that no choice fits, or that every choice fits.
            EnvironmentLacks: torch or transformers is missing.
        """
        low, high = (self._bits(map(side, self._sizes)) for side in (min, max))
        if not low <= bits <= high:
            raise InputError(
                f"--bits-per-weight {bits:g}: for this model the schemes reach {np.ceil(low * 1000) / 1000:g} to "
                f"{np.floor(high * 1000) / 1000:g}, with scales and all that stays float; choose one between"
            )
        damage = self._damage
        chosen = allocate(self._sizes, damage, int(bits * self._parameters / 8) - self._others)
        schemes = [group.choices[at] for group, at in zip(self.groups, chosen, strict=True)]
        kls = [row[at] for row, at in zip(damage, chosen, strict=True)]
        return AutoPolicy(
            rules=policy_of(self.groups, schemes),
            budget=bits,
            bits_per_weight=self._bits(row[at] for row, at in zip(self._sizes, chosen, strict=True)),
            predicted_kl=sum(kls),
            measured_kl=self._measure([self._variant(self.groups, schemes)], "the choice")[0],
            text=self.text,
            groups=tuple(zip(self.groups, schemes, kls, strict=True)),
        )

    def _bits(self, sizes: Iterable[int]) -> float:
        """Per weight, when the groups take these bytes."""
        return 8 * (self._others + sum(sizes)) / self._parameters

    @functools.cached_property
    def _reference(self) -> StreamedReference:
        from l4export.reference.streamed_model import StreamedReference

        return StreamedReference(self.inputs.checkpoint, self.layers)

    @functools.cached_property
    def _damage(self) -> list[list[float]]:
        """KL of every choice of every group, alone."""
        variants = [self._variant([group], [scheme]) for group in self.groups for scheme in group.choices]
        found = iter(self._measure(variants, f"{len(variants)} choices"))
        return [[next(found) for _ in group.choices] for group in self.groups]

    def _variant(self, groups: Sequence[WeightGroup], schemes: Sequence[Scheme]) -> Variant:
        """The reference with these groups rounded."""
        from l4export.reference.variants import Variant

        by_name = {name: scheme for group, scheme in zip(groups, schemes, strict=True) for name in group.shapes}
        return Variant(frozenset(by_name), _RoundedWeights(self._reference, by_name).rows)

    def _measure(self, variants: Sequence[Variant], what: str) -> list[float]:
        """Mean KL of each variant."""
        text, reference, windows, means = self.text, self._reference, self.text.windows, list[float]()
        from l4export.reference.variants import compare_variants

        stream_bytes = 4 * max(map(len, text.sequences)) * self.config.hidden_size
        at_once = max(1, _STREAMS_BYTES // stream_bytes)

        def on_layer(window: int, layer: int) -> None:
            self.on_step(f"measuring {what}: window {window + 1} of {len(text.sequences)}, layer {layer + 1}")

        for at in range(0, len(variants), at_once):
            batch = variants[at : at + at_once]
            pieces = [piece.kl for piece in compare_variants(reference, batch, windows, on_layer)]
            means += np.concatenate(pieces, axis=1).mean(axis=1).tolist()
        return means


@dataclass(frozen=True, eq=False)
class _RoundedWeights:
    """A model's weights rounded to nearest by the schemes given, for `StreamedReference.with_weights`."""

    reference: StreamedReference
    schemes: Mapping[str, Scheme]

    def rows(self, name: str, rows: slice) -> NDArray[np.float32] | None:
        """Rows of a weight [N, K], or experts of a weight [E, K, N]; None for one without a scheme."""
        if name not in self.schemes:
            return None
        values, scheme = self.reference.weight(name, rows), self.schemes[name]
        if values.ndim == 2:
            return QuantizedMatrix.rounded(values, scheme).values
        matrices = [np.ascontiguousarray(matrix.T) for matrix in values]
        return np.stack([QuantizedMatrix.rounded(matrix, scheme).values.T for matrix in matrices])


def _float_bytes(config: ModelConfig, groups: Sequence[WeightGroup], bits: int) -> int:
    """Bytes of the weights that are in no group."""
    chosen = {name for group in groups for name in group.shapes}
    return sum(bits // 8 * math.prod(shape) for name, shape in tensors(config).items() if name not in chosen)


def _rounded(kl: float) -> float:
    return float(f"{kl:.4g}")
