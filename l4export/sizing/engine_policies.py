"""Policies of the engines of a checkpoint, which keep the codes that it stores."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from l4export.checkpoint import Checkpoint, open_checkpoint, read_method
from l4export.quantization.policy import Policy, standard_policy
from l4export.targets import TARGETS
from l4export.targets.kept_codes import keep_codes

__all__ = ["FLOAT_WEIGHTS", "EnginePolicies", "PolicyOf", "engine_policies"]

PolicyOf = Callable[[str, str], Policy | None]
"""The policy of an engine, by the values of `--quant` and `--dtype`."""


@dataclass(frozen=True)
class EnginePolicies:
    """What a checkpoint's quantised weights mean for the sizes of engines.

    Attributes:
        policy_of: The policy of every engine.
        notes: What a person should know, a line each.
        keep_codes: Whether `--quant none` keeps codes.
    """

    policy_of: PolicyOf
    notes: tuple[str, ...] = ()
    keep_codes: bool = False


FLOAT_WEIGHTS = EnginePolicies(lambda quant, _: standard_policy(quant))
"""Of float weights, whose policy is that of `--quant` alone."""


def engine_policies(path: Path, target: str) -> EnginePolicies:
    """What a checkpoint directory or a config.json has. Reads no weights, and headers only of quantised ones.

    Raises:
        InputError: quantised weights that cannot be read.
        StorageError: reading failed.
    """
    if (method := read_method(path)) is None:
        return FLOAT_WEIGHTS
    if not any(path.glob("*.safetensors")):
        note = f"config.json names a quantisation ({method}), and no weights are there: sizes are of float weights"
        return replace(FLOAT_WEIGHTS, notes=(note,))
    checkpoint = open_checkpoint(path)
    policy, told = keep_codes(checkpoint, TARGETS[target])
    return EnginePolicies(_policies(checkpoint, target), tuple(map(str, told)), policy is not None)


def _policies(checkpoint: Checkpoint, target: str) -> PolicyOf:
    """Rules of codes that are kept count as those of codes that are made: their sizes are the same."""

    @functools.cache
    def policy_of(quant: str, dtype: str) -> Policy | None:
        policy, _ = keep_codes(checkpoint, TARGETS[target], standard_policy(quant))
        return policy and replace(policy, rules=tuple(replace(rule, as_stored=False) for rule in policy.rules))

    return policy_of
