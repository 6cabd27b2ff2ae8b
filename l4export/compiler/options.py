"""What a build is asked for, in groups: what is built, what it is measured on, and how it is built.

`BuildOptions` is all of them together; a function that needs one group takes that group's type.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from l4export.engine.kv_cache import KV_BITS, KV_DTYPES
from l4export.errors import InputError
from l4export.graph.dtypes import FLOATS
from l4export.quantization.policy import Policy
from l4export.targets import CHECKPOINT_TARGETS, TARGETS, CheckpointTarget, Target
from l4export.weights.emission import DEFAULT_BUDGET

__all__ = [
    "DEFAULT_MAX_CONTEXT",
    "VISION_CHOICES",
    "BuildOptions",
    "BuildResources",
    "CalibrationTexts",
    "DecoderOptions",
    "WeightOptions",
    "check_options",
]

DEFAULT_MAX_CONTEXT = 8192
VISION_CHOICES = ("auto", "none")


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """What is built, as far as it decides the bytes of weights.

    Attributes:
        target: A name of `l4export.targets.TARGETS`, or of `CHECKPOINT_TARGETS`.
        dtype: Float type of weights and of what is computed, `fp32`, `fp16` or `bf16`; None: the target's default.
        policy: What is quantised how; None: nothing.
        bits_per_weight: The policy is chosen by measured damage, to fit so many bits per weight
            (`l4export.compiler.auto_policy`); then `policy` must be None.
        layers: (A, B) builds an engine of the layers A to B - 1 alone; None: of all.
        vision: `auto` builds the vision tower of a checkpoint that has one, `none` the text model alone.
        vision_dtype: Float type of the tower; None: that of the text model.
        adapters: Directories of LoRA adapters that are merged into the checkpoint's weights, in this order.
    """

    target: str = "ort-cpu"
    dtype: str | None = None
    policy: Policy | None = None
    bits_per_weight: float | None = None
    layers: tuple[int, int] | None = None
    vision: str = "auto"
    vision_dtype: str | None = None
    adapters: tuple[Path, ...] = ()

    @property
    def float_dtype(self) -> str:
        """`dtype`, or the target's default."""
        return self.dtype or TARGETS[self.target].dtypes[0]

    @property
    def tower_dtype(self) -> str:
        """`vision_dtype`, or what the text model computes in."""
        return self.vision_dtype or self.float_dtype


@dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """What is built, as far as it changes the graph and no weight.

    Attributes:
        kv_layout: `static`, `chunked` or `concat`.
        kv_dtype: `fp32`, `fp16`, `int8` or `int4`; None: keys and values are stored as they are computed.
        max_context: Longest sequence in tokens; None: the model's own limit, at most 8192.
        activations: `fp8` rounds what FP8 weights are multiplied by; None: nothing is rounded.
        compute_capabilities: Of the GPUs that a TensorRT engine is compiled for, as "8.9".
    """

    kv_layout: str = "static"
    kv_dtype: str | None = None
    max_context: int | None = None
    activations: str | None = None
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CalibrationTexts:
    """What is measured on: texts or token ids (`l4export.calibration.text`).

    Attributes:
        calibrate: For the codes of integer weights, or with `activations` for their scales; None: weights are rounded
            to nearest, and activations are measured on the default text.
        kv_calibrate: For the scales of an int8 or int4 cache; None: the default text.
    """

    calibrate: Path | None = None
    kv_calibrate: Path | None = None


@dataclass(frozen=True, kw_only=True)
class BuildResources:
    """How it is built: nothing here changes a byte of the engine, but for how many engines a decoder is cut into.

    Attributes:
        jobs: Workers; None: one a core.
        memory_budget: Bytes of memory for weights on their way (`l4export.weights.emission`), None meaning 512 MiB; and
            for compiling: a decoder that takes more is cut into engines that do not. With None it is one engine.
        force: Whether an engine that is already there is replaced.
        dump_ir: A directory for the graph after every pass.
    """

    jobs: int | None = None
    memory_budget: int | None = None
    force: bool = False
    dump_ir: Path | None = None

    @property
    def workers(self) -> int:
        """`jobs`, or one a core."""
        return self.jobs or os.cpu_count() or 1

    @property
    def weights_budget(self) -> int:
        """Bytes of memory for weights on their way."""
        return DEFAULT_BUDGET if self.memory_budget is None else self.memory_budget


@dataclass(frozen=True, kw_only=True)
class BuildOptions(WeightOptions, DecoderOptions, CalibrationTexts, BuildResources):
    """Everything that `l4export build` is asked for; see the groups for each option."""

    @property
    def reads(self) -> list[Path]:
        """Adapters and texts: what is read beside the checkpoint."""
        return [*self.adapters, *(path for path in (self.calibrate, self.kv_calibrate) if path is not None)]

    @property
    def cache_dtype(self) -> str:
        """`kv_dtype`, or what is computed in."""
        return self.kv_dtype or self.float_dtype


def check_options(options: BuildOptions) -> None:
    """Refuse options that contradict each other or the target.

    Raises:
        InputError: by the option's name, with what to use instead.
    """
    target = _known("--target", options.target, [*TARGETS, *CHECKPOINT_TARGETS])
    if target in CHECKPOINT_TARGETS:
        _check_checkpoint(CHECKPOINT_TARGETS[target], options)
    else:
        _check_engine(TARGETS[target], options)
    if options.bits_per_weight is not None and options.policy is not None:
        raise InputError("--bits-per-weight: the policy is given, nothing is left to choose; leave one of them out")
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs {options.jobs} must be at least 1")
    if options.weights_budget < 1:
        raise InputError(f"--memory-budget {options.memory_budget} must be a positive number of bytes")


def _check_engine(target: Target, options: BuildOptions) -> None:
    _known("--dtype", options.float_dtype, FLOATS)
    if options.kv_dtype is not None:
        _known("--kv-dtype", options.kv_dtype, KV_DTYPES)
    _known("--vision", options.vision, VISION_CHOICES)
    _check_target(target, options)
    _check_tower(target, options)
    _check_texts(options)


_OF_ENGINES = (
    "dtype", "layers", "vision", "vision_dtype", *(field.name for field in dataclasses.fields(DecoderOptions)),
    "kv_calibrate", "dump_ir",
)  # fmt: skip
"""What is asked of an engine and means nothing to a checkpoint, which is the whole model in its own dtype."""


def _check_checkpoint(target: CheckpointTarget, options: BuildOptions) -> None:
    plain = BuildOptions()
    for name in _OF_ENGINES:
        if getattr(options, name) != getattr(plain, name):
            option = "--compute-capability" if name == "compute_capabilities" else f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: --target {target.name} does not take it; leave it out")
    for kind in sorted({rule.kind for rule in options.policy.rules} if options.policy else ()):
        if kind not in target.weight_kinds:
            raise InputError(f"--quant {kind}: use {' or '.join(target.weight_kinds)} for --target {target.name}")


def _known(option: str, value: str, known: object) -> str:
    names = list(known)  # type: ignore[call-overload]
    if value not in names:
        raise InputError(f"{option} {value} is not one of {', '.join(names)}")
    return value


def _check_target(target: Target, options: BuildOptions) -> None:
    """What the target has no operator or no kernel for."""
    kinds = {rule.kind for rule in options.policy.rules} if options.policy else set()
    _taken(target, "--dtype", options.float_dtype, target.dtypes)
    _taken(target, "--kv-layout", options.kv_layout, target.kv_layouts)
    if options.cache_dtype != options.float_dtype:
        _taken(target, "--kv-dtype", options.cache_dtype, target.kv_dtypes)
    for kind in sorted(kinds):
        _taken(target, "--quant", kind, target.weight_kinds)
    if options.activations is not None:
        _check_activations(target, options, kinds)
    elif options.calibrate is not None and not target.calibrates:
        raise InputError(f"--calibrate: weights for --target {target.name} are rounded to nearest; leave it out")
    if options.compute_capabilities and not target.compute_capabilities:
        able = [name for name, other in TARGETS.items() if other.compute_capabilities]
        raise InputError(f"--compute-capability is for --target {', '.join(able)}")
    target.check_options(options.float_dtype, options.policy, options.compute_capabilities)


def _check_tower(target: Target, options: BuildOptions) -> None:
    """The tower's dtype. Every target computes one in float32 as well."""
    if options.vision_dtype is not None:
        _taken(target, "--vision-dtype", options.vision_dtype, tuple(dict.fromkeys(("fp32", *target.dtypes))))
        if options.vision == "none":
            raise InputError("--vision-dtype: nothing is built for --vision none; leave it out")
        target.check_options(options.vision_dtype, None, options.compute_capabilities)


def _taken(target: Target, option: str, value: str, taken: tuple[str, ...]) -> None:
    if value not in taken:
        reason = target.reasons.get(value, "does not take it")
        advice = f"use {' or '.join(taken)}" if taken else "leave it out"
        raise InputError(f"{option} {value}: --target {target.name} {reason}; {advice}")


def _check_activations(target: Target, options: BuildOptions, kinds: set[str]) -> None:
    if options.activations not in target.activations:
        able = [name for name, other in TARGETS.items() if options.activations in other.activations]
        if not able:
            raise InputError(f"--activations {options.activations} is not fp8")
        raise InputError(
            f"--activations {options.activations}: --target {target.name} has no FP8 products; use {' or '.join(able)}"
        )
    if "fp8" not in kinds:
        raise InputError("--activations fp8: they are multiplied by FP8 weights alone; add --quant fp8")
    if options.float_dtype == "bf16":
        raise InputError("--activations fp8: their scales are measured in ONNX Runtime, without bf16; use --dtype fp16")


def _check_texts(options: BuildOptions) -> None:
    if options.kv_calibrate is not None and options.cache_dtype not in KV_BITS:
        raise InputError("--kv-calibrate: only scales of --kv-dtype int8 and int4 are calibrated; leave it out")
    if options.calibrate is not None and options.dump_ir is not None:
        raise InputError("--dump-ir: graphs are dumped before anything is calibrated; leave --calibrate out")
