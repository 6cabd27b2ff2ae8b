"""Policies, which say how each weight is quantised: patterns of weight names -> schemes."""

from __future__ import annotations

import fnmatch
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from l4export.errors import InputError, StorageError
from l4export.quantization.schemes import BLOCK_SIZES, Scheme

__all__ = ["QUANTIZATIONS", "Policy", "Rule", "load_policy", "standard_policy"]

QUANTIZATIONS = ("none", "int8", "int4", "fp8")
_ACCURACY_LEVELS = (1, 4)
_MAX_POLICY_BYTES = 1 << 20
_MATRICES = ("model.layers.*_proj.weight", "model.layers.*.experts.*_proj")
_MLPS = ("model.layers.*.feed_forward.*_proj.weight", "model.layers.*.experts.*_proj")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class Rule:
    """Weights whose names match a pattern of `weights`, and none of `but`, are stored as `kind`.

    Patterns are those of a shell (`*`, `?`, `[...]`), for checkpoint names without the multimodal prefix. `kind` is
    `int4`, `int8` or `fp8`. `block_size` None means the largest of 128, 64, 32, 16 that divides the width for integers,
    and one scale for each output channel for fp8. `fitted` is for integers: it chooses scales with the smallest squared
    error in each block. `as_stored` keeps the codes and scales that the checkpoint has (`l4export.targets.kept_codes`
    makes such rules; no file can).
    """

    weights: tuple[str, ...]
    kind: str
    block_size: int | None = None
    symmetric: bool = True
    but: tuple[str, ...] = ()
    fitted: bool = False
    as_stored: bool = False

    def matches(self, name: str) -> bool:
        """Whether the rule applies to this weight."""
        return _any(name, self.weights) and not _any(name, self.but)

    def scheme(self, name: str, *widths: int) -> Scheme:
        """Return the scheme for a weight with these contraction widths, or for several weights that must share one.

        Raises:
            InputError: the block size does not divide a width, or no block size does.
        """
        block = self.block_size
        if self.kind == "fp8":
            return Scheme("fp8", block or 0)
        fits = [size for size in BLOCK_SIZES if not any(width % size for width in widths)]
        if block is None and fits:
            block = fits[-1]
        if block is None or block not in fits:
            problem = "no block size divides" if block is None else f"block size {block} does not divide"
            shown = " and ".join(str(width) for width in sorted(set(widths)))
            advice = f"choose {_listed(fits)}" if fits else "name it in no rule, or in one for fp8"
            raise InputError(f"{name}: {problem} its width of {shown}; {advice}")
        return Scheme("int4" if self.kind == "int4" else "int8", block, self.symmetric, fitted=self.fitted)


@dataclass(frozen=True)
class Policy:
    """Rules, and how ONNX Runtime's CPU kernels multiply integer weights. Weights that no rule names stay as they are.

    With `accuracy_level` 4 the kernels round activations to int8, in the blocks of the weights. With 1 activations stay
    float32. Level 1 is for checks: there is no such kernel for weights of 8 bits, so every call makes floats of the
    whole matrix, and a token takes fifty times as long as with 4, twenty times as long as with float32 weights
    (docs/reference/measurements.md). Other targets ignore the level.

    `origin` says how the policy was chosen, if it was chosen by measurement (`l4export.compiler.auto_policy`).
    """

    rules: tuple[Rule, ...]
    accuracy_level: int = 4
    origin: Mapping[str, Any] | None = field(default=None, compare=False)

    def rule_for(self, name: str) -> Rule | None:
        """Return the rule that applies to a weight, or None if the weight stays float.

        Raises:
            InputError: two different rules apply to it.
        """
        found = [rule for rule in self.rules if rule.matches(name)]
        kinds = {(rule.kind, rule.block_size, rule.symmetric, rule.fitted) for rule in found}
        if len(kinds) > 1:
            shown = " and ".join(", ".join(rule.weights) for rule in found[:2])
            raise InputError(
                f"the policy contradicts itself on {name}: rules {shown}; add the name to one rule's `but`"
            )
        return found[0] if found else None

    def to_dict(self) -> dict[str, Any]:
        """Return the policy for manifests, as plain JSON values."""
        rules = [{**asdict(rule), "weights": list(rule.weights), "but": list(rule.but)} for rule in self.rules]
        return {"accuracy_level": self.accuracy_level, "rules": rules}

    def without_stored(self) -> Policy | None:
        """Return the policy without the rules of codes that are kept; None if there are no others."""
        rules = tuple(rule for rule in self.rules if not rule.as_stored)
        return replace(self, rules=rules) if rules else None

    def to_toml(self) -> str:
        """Return the policy as the text of a file that `load_policy` reads. Such a file keeps no codes by itself."""
        lines = [f"accuracy_level = {self.accuracy_level}"]
        for rule in self.rules:
            lines += ["", "[[rule]]"]  # strings, numbers, booleans and lists are written as in JSON
            values = ((key, value) for key, value in asdict(rule).items() if value is not None and key != "as_stored")
            lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values]
        return "\n".join(lines) + "\n"

    def check_used(self, quantized: Iterable[str]) -> None:
        """Refuse a rule that applies to no weight that was quantised, such as a mistyped pattern, or norms alone.

        Raises:
            InputError: there is such a rule. The message has its patterns.
        """
        known = list(quantized)
        for rule in self.rules:
            if not any(rule.matches(name) for name in known):
                shown = ", ".join(rule.weights)
                raise InputError(f"the policy's rule for {shown} names no weight of this model that can be quantised")


def standard_policy(
    quant: str, block_size: int | None = None, fitted: bool = False, of_mlps_alone: bool = False
) -> Policy | None:
    """Return the policy of `--quant`, which is None for `none`.

    Matrices of attention, experts and feed-forward are stored as `quant` says. The head and the embedding have 8 bits,
    because 4 bits there raise the KL of the trained example by half, and a step reads one row of the embedding. With
    fp8 the embedding stays float. The router, norms and everything else stay float, because they are tiny. `fitted`
    applies to the matrices alone, because 8 bits gain nothing from it. With `of_mlps_alone` attention, the head and
    the embedding stay float too, as loaders of checkpoints want them.

    The accuracy level is 4, although level 1 loses less, because level 1 is too slow to be used (`Policy`).

    Raises:
        InputError: the quantisation is unknown; there is a block size with `none`; the block size or fitted scales do
            not go with the quantisation.
    """
    if quant not in QUANTIZATIONS:
        raise InputError(f"--quant {quant} is not one of {_listed(QUANTIZATIONS)}")
    if quant == "none":
        if block_size is not None:
            raise InputError("--block-size needs --quant int4, int8 or fp8")
        _check_fitted(quant, fitted, "--fit-scales")
        return None
    _check_block(quant, block_size, "--block-size")
    _check_fitted(quant, fitted, "--fit-scales")
    if of_mlps_alone:
        return Policy((Rule(_MLPS, quant, block_size, fitted=fitted),))
    if quant == "fp8":
        return Policy((Rule((*_MATRICES, _HEAD), "fp8", block_size),))
    rest = Rule((_HEAD, _EMBEDDING), "int8")
    return Policy((Rule(_MATRICES, quant, block_size, fitted=fitted), rest))


def load_policy(path: Path) -> Policy:
    """Read a policy from a TOML file.

        accuracy_level = 4

        [[rule]]
        weights = ["model.layers.*.experts.*"]
        kind = "int4"
        block_size = 32

    Raises:
        InputError: the file is not TOML, or has a key or a value that means nothing. The message names it.
        StorageError: the file cannot be read.
    """
    try:
        if path.stat().st_size > _MAX_POLICY_BYTES:
            raise InputError(f"{path}: larger than {_MAX_POLICY_BYTES >> 20} MiB; not a policy")
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not TOML ({error})") from error
    _known(raw, {"accuracy_level", "rule"}, str(path))
    level = raw.get("accuracy_level", 4)
    if type(level) is not int or level not in _ACCURACY_LEVELS:
        raise InputError(f"{path}: accuracy_level must be one of {_listed(_ACCURACY_LEVELS)}")
    rules = raw.get("rule")
    if not isinstance(rules, list) or not rules or not all(isinstance(rule, dict) for rule in rules):
        raise InputError(f"{path}: names nothing; write at least one [[rule]]")
    return Policy(tuple(_rule(rule, f"{path}: rule {i}") for i, rule in enumerate(rules, start=1)), level)


def _rule(raw: Mapping[str, Any], where: str) -> Rule:
    _known(raw, {"weights", "but", "kind", "block_size", "symmetric", "fitted"}, where)
    kind, block, symmetric = raw.get("kind"), raw.get("block_size"), raw.get("symmetric", True)
    if kind not in QUANTIZATIONS[1:]:
        raise InputError(f"{where}: kind must be one of {_listed(QUANTIZATIONS[1:])}")
    if block is not None and type(block) is not int:
        raise InputError(f"{where}: block_size must be a whole number")
    _check_block(str(kind), block, f"{where}: block_size")
    if type(symmetric) is not bool or (kind == "fp8" and not symmetric):
        raise InputError(f"{where}: symmetric must be true or false, and true for fp8")
    fitted = raw.get("fitted", False)
    if type(fitted) is not bool:
        raise InputError(f"{where}: fitted must be true or false")
    _check_fitted(str(kind), fitted, f"{where}: fitted")
    return Rule(_patterns(raw, "weights", where), str(kind), block, symmetric, _patterns(raw, "but", where), fitted)


def _patterns(raw: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = raw.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise InputError(f"{where}: {key} must be a list of patterns")
    if key == "weights" and not value:
        raise InputError(f'{where}: names nothing; write weights = ["..."]')
    return tuple(value)


def _check_block(kind: str, block: int | None, what: str) -> None:
    allowed = (128,) if kind == "fp8" else BLOCK_SIZES
    if block is not None and block not in allowed:
        raise InputError(f"{what} {block}: {kind} takes {_listed(allowed)}")


def _check_fitted(kind: str, fitted: bool, what: str) -> None:
    if fitted and kind not in {"int4", "int8"}:
        raise InputError(f"{what}: scales are fitted for int4 and int8, not for {kind}")


def _known(raw: Mapping[str, Any], keys: set[str], where: str) -> None:
    if unknown := sorted(set(raw) - keys):
        raise InputError(f"{where}: {unknown[0]!r} means nothing; known are {_listed(sorted(keys))}")


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _listed(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)
