"""What an adapter_config.json of PEFT says, and a refusal of everything that would change what is computed.

The fields are those of PEFT's `LoraConfig` [github.com/huggingface/peft, src/peft/tuners/lora/config.py]. A field that
is not known here may stand for a variant of LoRA, so one that is set is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4export.model.config_fields import Fields, show

__all__ = ["AdapterConfig", "parse_adapter_config"]

_READ = {
    *("peft_type", "bias", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("target_modules", "target_parameters", "modules_to_save", "init_lora_weights", "base_model_name_or_path"),
    "peft_version",
}
_ABOUT_TRAINING = {
    *("auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core"),
    *("qalora_group_size", "revision", "runtime_config", "task_type"),
}
"""Fields that change nothing once an adapter is trained."""

_UNCHANGED_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin a training that leave the base model's weights as they are. Others change them too, so the base that
the adapter belongs to is not the checkpoint."""

_RELEASE = re.compile(r"(\d{1,4})\.(\d{1,4})\.\d{1,4}")
_PATTERN = re.compile(r"\^?(?:[\w.]|\\\.)+")
_MAX_RANK = 2**16
_MAX_PATTERNS = 10_000


@dataclass(frozen=True)
class AdapterConfig:
    """The fields that decide the weights.

    Attributes:
        where: The file, for messages.
        rank: r of modules without a pattern.
        alpha: lora_alpha of modules without a pattern.
        ranks: Pattern -> r.
        alphas: Pattern -> lora_alpha.
        stabilised: Whether a change is divided by the root of its rank (rsLoRA).
        dora: Whether rows have magnitudes of their own (DoRA).
        targets: Names that modules or parameters end with, each of which must be there.
        saved: Names of modules that were saved as a whole, each of which must be there.
        base: The base model as PEFT knew it; None: it is not named.
        release: The release of PEFT that it is of, such as (0, 18); None: no release is named.
    """

    where: str
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    stabilised: bool
    dora: bool
    targets: tuple[str, ...]
    saved: tuple[str, ...]
    base: str | None
    release: tuple[int, int] | None

    def rank_of(self, target: str) -> int:
        """r of a module or a parameter, by its name in the base model."""
        return self.ranks.get(_first_match(self.ranks, target), self.rank)

    def alpha_of(self, target: str) -> float:
        """lora_alpha of a module or a parameter, by its name in the base model."""
        return self.alphas.get(_first_match(self.alphas, target), self.alpha)

    def scale_of(self, target: str) -> float:
        """What B A is multiplied by: alpha / r, or with rsLoRA alpha / sqrt(r) [arXiv:2312.03732]."""
        rank = self.rank_of(target)
        return self.alpha_of(target) / (math.sqrt(rank) if self.stabilised else rank)


def parse_adapter_config(raw: Mapping[str, Any], path: Path) -> AdapterConfig:
    """The config that a JSON object holds; `path` is for messages.

    Raises:
        InputError: another kind of adapter than LoRA, a variant that is not read, or a field of a wrong type or range.
    """
    fields = Fields(raw, str(path))
    if (kind := fields.value("peft_type", None)) != "LORA":
        raise fields.refuse("peft_type", f"is {show(kind)}; only LORA is read: merge other adapters with peft")
    if (bias := fields.value("bias", "none")) != "none":
        raise fields.refuse("bias", f"is {show(bias)}; only adapters without biases are read: merge it with peft")
    begun = fields.value("init_lora_weights", True)
    if begun not in _UNCHANGED_BASE:
        raise fields.refuse(
            "init_lora_weights",
            f"is {show(begun)}, which changes the base model's weights too; convert the adapter to plain LoRA with "
            "peft (save_pretrained with path_initial_model_for_weight_conversion)",
        )
    for name, value in raw.items():
        if name not in _READ and name not in _ABOUT_TRAINING and value:
            raise fields.refuse(show(name), "is set, and not known here; merge this adapter with peft")
    return AdapterConfig(
        where=str(path),
        rank=_rank(fields, "r", raw.get("r")),
        alpha=_alpha(fields, "lora_alpha", raw.get("lora_alpha")),
        ranks={key: _rank(fields, "rank_pattern", value) for key, value in _patterns(fields, "rank_pattern")},
        alphas={key: _alpha(fields, "alpha_pattern", value) for key, value in _patterns(fields, "alpha_pattern")},
        stabilised=fields.typed("use_rslora", fields.value("use_rslora", False), bool),
        dora=fields.typed("use_dora", fields.value("use_dora", False), bool),
        targets=(*_names(fields, "target_modules"), *_names(fields, "target_parameters")),
        saved=tuple(_names(fields, "modules_to_save")),
        base=raw.get("base_model_name_or_path") or None,
        release=(int(found[1]), int(found[2])) if (found := _RELEASE.fullmatch(str(raw.get("peft_version")))) else None,
    )


def _rank(fields: Fields, name: str, value: object) -> int:
    rank: int = fields.typed(name, value, int, 1, _MAX_RANK)
    return rank


def _alpha(fields: Fields, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) < 1e30:
        raise fields.refuse(name, f"is {show(value)}; expected a finite number other than 0")
    return float(value)


def _patterns(fields: Fields, name: str) -> Iterable[tuple[str, Any]]:
    """The items of a map from patterns; only plain ones, because others may take for ever to match."""
    value = fields.value(name, None) or {}
    if not isinstance(value, Mapping):
        raise fields.refuse(name, f"is {show(value)}; expected an object")
    if len(value) > _MAX_PATTERNS:
        raise fields.refuse(name, f"has {len(value)} patterns; at most {_MAX_PATTERNS} are read")
    for key in value:
        if not _PATTERN.fullmatch(key):
            raise fields.refuse(name, f"has the pattern {show(key)}; only names, with ^ before them, are read")
    return value.items()


def _names(fields: Fields, name: str) -> list[str]:
    value = fields.value(name, None)
    if value is None or isinstance(value, str):
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise fields.refuse(name, f"is {show(value)}; expected an array of names")
    return value


def _first_match(patterns: Iterable[str], target: str) -> str:
    """The first pattern that a name ends with, as PEFT looks for it; nothing if there is none."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", target)), "")
