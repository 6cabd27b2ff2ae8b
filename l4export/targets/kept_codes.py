"""Which codes of a quantised checkpoint go over as they are, and what becomes of the others.

Codes are kept where an operator of the target holds them, and no rule of the policy asks for another kind: the rules
that say so are added to the policy. Others are dequantised, once, and treated as floats.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from l4export.checkpoint import Checkpoint, StoredWeight
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.model.tensors import tensors
from l4export.model.weight_names import moved_up
from l4export.quantization.kept_codes import coded_data, kept_scheme
from l4export.quantization.policy import Policy, Rule
from l4export.storage.safetensors import HANDLED_DTYPES

__all__ = ["Holder", "StoredCodes", "keep_codes"]

Outcome = Literal["kept", "dequantized", "quantized again"]


@dataclass(frozen=True)
class StoredCodes:
    """What becomes of some weights that the checkpoint stores quantised.

    Attributes:
        weights: Patterns of their names.
        count: How many they are.
        stored: How they are stored, for people: "INT4, groups of 128".
        outcome: What becomes of them.
        reason: Why they are not kept; empty where they are.
    """

    weights: tuple[str, ...]
    count: int
    stored: str
    outcome: Outcome
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """For manifests, as plain JSON values."""
        return {**asdict(self), "weights": list(self.weights)}

    def __str__(self) -> str:
        """A line for people."""
        told: dict[Outcome, str] = {
            "kept": "codes and scales are kept",
            "dequantized": f"dequantised ({self.reason})",
            "quantized again": f"quantised a second time ({self.reason}); expect the losses of both",
        }
        return f"{self.count} weights in {self.stored}: {told[self.outcome]}"


class Holder(Protocol):
    """A target, as far as it may hold codes."""

    @property
    def name(self) -> str:
        """Its name in `--target`."""

    def cannot_keep(self, rule: Rule, names: Sequence[str], exact: bool) -> str:
        """Why it cannot hold the codes that a rule describes, of the weights `names`; empty: it can.

        If `exact`, activations must not be rounded because of them.
        """


@dataclass(frozen=True)
class _Operand:
    """The weights of one operator, which have one scheme, as the checkpoint stores them.

    `changed` says whether an adapter is merged into one of them, so that its codes are not the model's.
    """

    names: tuple[str, ...]
    stored: Sequence[StoredWeight]
    changed: bool

    @property
    def widths(self) -> list[int]:
        """The inputs K of each, the second axis in every inventory: [N, K], or [E, K, N]."""
        return [weight.shape[1] for weight in self.stored]

    @property
    def formats(self) -> str:
        """How they are stored, for people."""
        return " and ".join(dict.fromkeys(name for weight in self.stored for name in weight.formats))


def keep_codes(
    checkpoint: Checkpoint,
    target: Holder,
    asked: Policy | None = None,
    layers: tuple[int, int] | None = None,
    check: Callable[[Policy], None] | None = None,
    scale_dtype: str | None = None,
) -> tuple[Policy | None, tuple[StoredCodes, ...]]:
    """The policy with rules for the codes that are kept, and what becomes of every quantised weight. Reads no weights.

    Without a policy activations stay in floats beside codes that are kept (accuracy level 1), as the checkpoint has
    them; so 8-bit codes are not kept where the target's operators round activations before them.

    Args:
        checkpoint: The checkpoint.
        target: What is built for.
        asked: The policy that is asked for; None: nothing is to be quantised.
        layers: (A, B): the layers A to B - 1 alone; None: all.
        check: Refuses a policy that the device does not take (`InputError`); None: nothing does.
        scale_dtype: NumPy's name of a dtype in which no scale may be rounded; None: scales take the engine's.

    Raises:
        InputError: a weight that is missing or of another shape; a policy that contradicts itself.
    """
    config = checkpoint.config.slice_layers(*layers) if layers else checkpoint.config
    build = _Build(target, asked, check, scale_dtype)
    everything = list(tensors(config))
    told: dict[tuple[str, Outcome, str], list[str]] = {}
    kept: dict[Rule, list[str]] = {}
    for operand in _quantized(checkpoint, config, layers[0] if layers else 0):
        rule, outcome, reason = build.decide(operand)
        told.setdefault((operand.formats, outcome, reason), []).extend(operand.names)
        if rule is not None:
            kept.setdefault(rule, []).extend(operand.names)
    rules = {rule: _patterns(names, everything) for rule, names in kept.items()}
    policy = _with_rules(asked, [replace(rule, weights=names) for rule, names in rules.items()], everything)
    return policy, tuple(StoredCodes(_patterns(names, everything), len(names), *key) for key, names in told.items())


def _quantized(checkpoint: Checkpoint, config: ModelConfig, first: int) -> Iterator[_Operand]:
    """Everything that is stored quantised; the two tensors of a layer's experts are of one operator."""
    if not checkpoint.is_quantized():
        return
    base = replace(checkpoint, adapters=())
    changed = {name for adapter in checkpoint.adapters for name in adapter.changed}
    groups: dict[str, list[str]] = {}
    shapes = {name: shape for name, shape in tensors(config).items() if len(shape) > 1}
    for name, shape in shapes.items():
        groups.setdefault(name.rpartition(".")[0] if len(shape) == 3 else name, []).append(name)
    for names in groups.values():
        there = [moved_up(name, first) for name in names]
        stored = [base.tensor(full, shapes[name]) for full, name in zip(there, names, strict=True)]
        if any(set(weight.formats) - set(HANDLED_DTYPES) for weight in stored):
            yield _Operand(tuple(names), stored, not changed.isdisjoint(there))


@dataclass(frozen=True)
class _Build:
    """What is built, as far as it decides which codes are kept."""

    target: Holder
    policy: Policy | None
    check: Callable[[Policy], None] | None
    scale_dtype: str | None

    def decide(self, operand: _Operand) -> tuple[Rule | None, Outcome, str]:
        """The rule that keeps the codes, or None; and what becomes of them, with the reason."""
        asked = next(filter(None, (self.policy.rule_for(name) for name in operand.names if self.policy)), None)
        rule = None if operand.changed else _held(operand)
        if operand.changed:
            reason = "an adapter changes them"
        elif rule is None:
            reason = f"no operator of --target {self.target.name} has such codes"
        elif asked and (asked.kind != rule.kind or asked.block_size not in (None, rule.block_size)):
            reason = f"{asked.kind}{f' in blocks of {asked.block_size}' if asked.block_size else ''} is asked for"
        else:
            reason = self._obstacle(operand, rule)
        if rule is not None and not reason:
            return rule, "kept", ""
        return None, "quantized again" if asked else "dequantized", reason

    def _obstacle(self, operand: _Operand, rule: Rule) -> str:
        """Why codes that a rule describes cannot be kept; empty: they can."""
        if reason := self.target.cannot_keep(rule, operand.names, exact=self.policy is None):
            return f"--target {self.target.name} {reason}"
        scales = {str(coded.format.scale_dtype) for each in operand.stored if (coded := coded_data(each))}
        if self.scale_dtype and scales != {self.scale_dtype}:
            return f"scales in {' and '.join(sorted(scales))} would be rounded to {self.scale_dtype}"
        if self.check is not None:
            try:
                self.check(Policy((rule,)))
            except InputError as error:
                return str(error)
        return ""


def _held(operand: _Operand) -> Rule | None:
    """The rule, still without names, whose scheme holds the codes on some target; None: there is none."""
    coded = [coded_data(weight) for weight in operand.stored]
    formats = {replace(each.format, columns=0, scale_dtype=np.dtype(np.float32)) for each in coded if each}
    if None in coded or len(formats) != 1:
        return None
    schemes = {kept_scheme(each.format, k) for each, k in zip(coded, operand.widths, strict=True) if each}
    if None in schemes:
        return None
    kind, block, symmetric = min((scheme for scheme in schemes if scheme), key=lambda scheme: scheme[1] or math.inf)
    return Rule((), kind, block, symmetric, as_stored=True)


def _with_rules(policy: Policy | None, kept: Sequence[Rule], everything: Sequence[str]) -> Policy | None:
    """The policy with the rules of weights that are kept, whose names the others no longer match."""
    if not kept:
        return policy
    if policy is None:
        return Policy(tuple(kept), accuracy_level=1)
    taken = tuple(pattern for rule in kept for pattern in rule.weights)
    rules = []
    for rule in policy.rules:
        left = replace(rule, but=(*rule.but, *taken))
        matched, matches = ([name for name in everything if each.matches(name)] for each in (rule, left))
        if matched == matches:
            rules.append(rule)
        elif matches:
            rules.append(left)
    return replace(policy, rules=(*rules, *kept))


def _patterns(names: Collection[str], everything: Sequence[str]) -> tuple[str, ...]:
    """Patterns that match these names and no other: of all layers, or names."""
    chosen, found = set(names), dict[str, None]()
    for name in names:
        head, _, rest = name.partition("model.layers.")
        pattern = f"{head}model.layers.*.{rest.partition('.')[2]}" if rest else name
        every = not rest or chosen.issuperset(other for other in everything if fnmatch.fnmatchcase(other, pattern))
        found[pattern if every else name] = None
    return tuple(found)
