"""A target whose product is no engine but a checkpoint that other programs load: what it takes, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l4export.model.config import ModelConfig
    from l4export.model.vision_config import VisionConfig
    from l4export.quantization.codes_source import CodesSource
    from l4export.quantization.policy import Policy, Rule
    from l4export.quantization.schemes import ScaleDtype
    from l4export.weights.placement import DataFile
    from l4export.weights.recipes import Source

__all__ = ["CheckpointFiles", "CheckpointRequest", "CheckpointTarget"]


@dataclass(frozen=True)
class CheckpointRequest:
    """What a checkpoint is written from. No weight has been read.

    Attributes:
        config: The text model.
        vision: The vision tower, which is carried over as it is; None where there is none.
        raw_config: The fields of config.json in Hugging Face's layout.
        prefix: What the names of the text model's tensors begin with: `language_model.` in a multimodal checkpoint.
        weight: A weight of the text model's inventory, by name (without prefix) and shape.
        tower_weight: The same for the vision tower.
        dtype: The dtype of scales, and of floats that are computed and not stored in the source.
        policy: Which weights are quantised, and how.
        calibration: Finds codes and routers; None: weights are rounded to nearest, and routers are carried over.
    """

    config: ModelConfig
    vision: VisionConfig | None
    raw_config: Mapping[str, Any]
    prefix: str
    weight: Callable[[str, tuple[int, ...]], Source]
    tower_weight: Callable[[str, tuple[int, ...]], Source]
    dtype: ScaleDtype
    policy: Policy
    calibration: CodesSource | None


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint of which everything is known but the bytes of its weights.

    Attributes:
        shards: The files with weights, and where each weight goes.
        headers: What each of them begins with, before the first weight.
        texts: The other files that the target writes, by name.
    """

    shards: tuple[DataFile, ...]
    headers: Mapping[str, bytes]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class CheckpointTarget:
    """One value of `--target` that gives a checkpoint.

    Attributes:
        name: The name in `--target` and in the manifest.
        summary: What the checkpoint is for, in a few words.
        weight_kinds: Kinds of quantised weights.
        block_sizes: The blocks of integer weights.
        lay_out: Decides names, dtypes, shapes and places of all tensors. It raises `InputError` for a policy that the
            loaders cannot follow.
        stays_float: Whether the weight of a name cannot be quantised for the loaders.
    """

    name: str
    summary: str
    weight_kinds: tuple[str, ...]
    block_sizes: tuple[int, ...]
    lay_out: Callable[[CheckpointRequest], CheckpointFiles]
    stays_float: Callable[[str], bool]

    def cannot_keep(self, rule: Rule, names: Sequence[str], exact: bool) -> str:
        """As `l4export.targets.kept_codes.Holder`; who loads the checkpoint decides what is rounded."""
        if rule.kind not in self.weight_kinds or not rule.symmetric:
            return f"does not take {rule.kind}{'' if rule.symmetric else ' with zero points'}"
        if rule.kind == "fp8" and rule.block_size:
            return "takes FP8 with a scale a channel"
        if rule.kind != "fp8" and rule.block_size not in self.block_sizes:
            return f"does not take blocks of {rule.block_size}"
        if left := [name for name in names if self.stays_float(name)]:
            return f"has {', '.join(left)} in floats"
        return ""
