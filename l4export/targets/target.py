"""What a target is: one object that says what it takes, how its graph is lowered and what finishes its engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from l4export.engine.manifest import DeviceNeeds, Runtime
    from l4export.engine.profiles import TokenRange
    from l4export.model.config import ModelConfig
    from l4export.quantization.codes_source import CodesSource
    from l4export.quantization.policy import Policy, Rule
    from l4export.quantization.schemes import ScaleDtype

__all__ = ["CACHES_IN_PLACE", "GraphOptions", "LayerRange", "Target", "UnfinishedEngine"]

CACHES_IN_PLACE = {
    "concat": "updates caches in place",
    **dict.fromkeys(("fp32", "fp16", "int8", "int4"), "has caches of --dtype"),
}
"""What messages say of KV layouts and dtypes that a target does not take, where caches are buffers of the dtype that
it computes in."""

LayerRange = tuple[int, int]
"""The index of the first layer, and one more than that of the last."""


@dataclass(frozen=True)
class GraphOptions:
    """The options that decide, with the target, which passes make a graph.

    Attributes:
        kv_layout: `concat`, `static` or `chunked`.
        max_context: Longest sequence, in tokens.
        policy: Which weights are quantised, and how. None: no weights are.
        kv_dtype: `fp32`, `fp16`, `int8` or `int4`; None: keys and values are stored as they are computed.
        calibration: Finds the codes of weights; None: weights are rounded to nearest.
        activations: `fp8` where FP8 weights are multiplied by FP8 activations; None elsewhere.
    """

    kv_layout: str
    max_context: int
    policy: Policy | None = None
    kv_dtype: str | None = None
    calibration: CodesSource | None = None
    activations: str | None = None


@dataclass(frozen=True)
class UnfinishedEngine:
    """An engine directory that has its graph and weights, for the target to finish.

    Attributes:
        directory: The directory of the graph and its data files.
        graph: The name of the decoder's file in it.
        model: The lowered decoder; its weights are in the data files.
        config: The configuration of the model.
        kv_layout: `concat`, `static` or `chunked`.
        max_context: Longest sequence, in tokens.
        prefill_tokens: The most tokens of one call.
        profiles: The smallest, the likeliest and the largest number of tokens of a call, for each optimisation
            profile.
        activations: `fp8` or None.
        parts: The layers of each engine to be compiled; empty where nothing is compiled.
        compute_capabilities: Those of the GPUs to compile for, such as "8.9".
        on_notice: Called with each line that a person may want to read.
        tower: The name of the vision tower's file; None where there is none.
        image_token: The id of the token that stands for a row of its features; None where there is no tower.
    """

    directory: Path
    graph: str
    model: ir.Model
    config: ModelConfig
    kv_layout: str
    max_context: int
    prefill_tokens: int
    profiles: tuple[TokenRange, ...]
    activations: str | None
    parts: tuple[LayerRange, ...]
    compute_capabilities: tuple[str, ...]
    on_notice: Callable[[str], None]
    tower: str | None = None
    image_token: int | None = None


@dataclass(frozen=True)
class Target:
    """One value of `--target`: what it takes, how its graph is made and its engine finished, and what runs it.

    Attributes:
        name: The name in `--target` and in the manifest.
        summary: What the engine is for, in a few words.
        runtime: What executes the engine.
        dtypes: Float types that it computes in; the first is the default.
        kv_layouts: Layouts of the KV cache.
        kv_dtypes: Types of the KV cache; the computing type is always taken.
        weight_kinds: Kinds of quantised weights.
        calibrates: Whether the codes of its integer weights can be chosen on a text.
        activations: Types that activations can be rounded to in the graph.
        positive_scales: Whether its integer weights have positive scales only (`Scheme.positive`).
        scale_dtype: Type of the scales of integer weights in an engine that computes in float32.
        expert_blocks: Block sizes of integer experts; empty: any.
        rounds_activations: Whether its operators round activations to int8 before integer weights, where the policy's
            accuracy level lets them.
        always_rounds: Whether its operators do so before experts of 8 bits at every level.
        compute_capabilities: Whether it is compiled for named GPUs.
        is_judged: Whether its engines carry a check graph, by which a runtime judges a device before it trusts it.
        needs: The least that its engines need of a GPU.
        reasons: Why a value is not taken, in words that follow "--target NAME" in a message.
        lower: The passes from the common graph to the target's operators. Every CPU can run what they make, and the
            target is judged by it.
        lower_vision: The same for a vision tower, with the policy of its weights.
        specialise: The passes from there to forms that only the target's device executes.
        check_options: Refuses combinations of dtype, policy and compute capabilities that the attributes above do not
            exclude.
        check_graph: Refuses a lowered graph that the target would execute differently.
        cut: Ranges of layers to be compiled, each within a budget of memory in bytes; None where nothing is compiled.
        check_machine: Raises `EnvironmentLacks` where a planned decoder with these parts, or its vision tower, cannot
            be compiled.
        finish: Adds files to the engine and returns their names.
    """

    name: str
    summary: str
    runtime: Runtime
    dtypes: tuple[str, ...]
    kv_layouts: tuple[str, ...]
    kv_dtypes: tuple[str, ...]
    weight_kinds: tuple[str, ...]
    lower: Callable[[GraphOptions], list[ir.passes.InPlacePass]]
    lower_vision: Callable[[Policy | None], list[ir.passes.InPlacePass]]
    specialise: Callable[[GraphOptions], list[ir.passes.InPlacePass]] = lambda _: []
    calibrates: bool = False
    activations: tuple[str, ...] = ()
    positive_scales: bool = False
    scale_dtype: ScaleDtype = "float32"
    expert_blocks: tuple[int, ...] = ()
    rounds_activations: bool = False
    always_rounds: bool = False
    compute_capabilities: bool = False
    is_judged: bool = False
    needs: DeviceNeeds | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    check_options: Callable[[str, Policy | None, Sequence[str]], None] = lambda *_: None
    check_graph: Callable[[ir.Model], None] = lambda _: None
    cut: Callable[[ir.Graph, int | None], tuple[LayerRange, ...]] | None = None
    check_machine: Callable[[ir.Model, Sequence[LayerRange], ir.Model | None], None] = lambda *_: None
    finish: Callable[[UnfinishedEngine], list[str]] = lambda _: []

    def cannot_keep(self, rule: Rule, names: Sequence[str], exact: bool) -> str:
        """As `l4export.targets.kept_codes.Holder`."""
        are_experts = any(".experts." in name for name in names)
        if rule.kind not in self.weight_kinds:
            return self.reasons.get(rule.kind, f"does not take {rule.kind}")
        if self.positive_scales and not rule.symmetric:
            return "has no zero points"
        if are_experts and rule.kind != "fp8" and self.expert_blocks and rule.block_size not in self.expert_blocks:
            return f"has no kernel for experts in blocks of {rule.block_size}"
        if exact and self.always_rounds and rule.kind == "int8":
            return "would round activations before them; --quant int8 keeps them"
        return ""
