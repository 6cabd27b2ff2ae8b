"""The compiler, as a table of contents: which passes make an engine, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from l4export import passes
from l4export.quantization.policy import Policy
from l4export.targets import TARGETS, GraphOptions

__all__ = ["OnStage", "pass_name", "pipeline", "run_passes", "specialisation", "vision_pipeline"]

OnStage = Callable[[int, str, ir.Model], None]
"""Receives (index, name, model): the graph at the start (0, "reference") and after each pass."""


def pipeline(target: str, options: GraphOptions) -> list[ir.passes.InPlacePass]:
    """The passes from the reference graph to the target's operators. Every graph on the way can be run, but TensorRT's.

    `specialisation` follows, for the targets that have one. Where scales are measured, `SetKVScales` or
    `SetActivationScales` follows when the weights have been written.
    """
    return [
        # how many tokens there may be, and where their keys and values live
        passes.LimitContext(options.max_context),
        passes.LayOutKVCache(options.kv_layout),
        # the target's own operators: a file each in l4export/targets
        *TARGETS[target].lower(options),
        # what is left of the dialect becomes standard operators
        passes.InlineDialect(),
        passes.RemoveUnused(),
    ]


def vision_pipeline(target: str, policy: Policy | None = None) -> list[ir.passes.InPlacePass]:
    """The passes from the reference graph of a vision tower to the target's operators.

    `policy` is that of the tower's weights alone; None: nothing is quantised.
    """
    return [
        *TARGETS[target].lower_vision(policy),
        # what is left of the dialect becomes standard operators
        passes.InlineDialect(),
        passes.RemoveUnused(),
    ]


def specialisation(target: str, options: GraphOptions) -> list[ir.passes.InPlacePass]:
    """The passes to forms that only the target's device executes: they follow `pipeline`, which a CPU can still run."""
    return TARGETS[target].specialise(options)


def run_passes(
    model: ir.Model, steps: Sequence[ir.passes.InPlacePass], on_stage: OnStage | None = None, first: int = 1
) -> tuple[str, ...]:
    """Run passes on `model`, in place, and return their names.

    The first of them has the index `first`; before pass 1 the model is the reference graph.
    """
    if on_stage and first == 1:
        on_stage(0, "reference", model)
    for index, step in enumerate(steps, start=first):
        step(model)
        if on_stage:
            on_stage(index, pass_name(type(step)), model)
    return tuple(pass_name(type(step)) for step in steps)


def pass_name(step: type) -> str:
    """A pass's name in manifests and dumps: its file's name, such as `fuse_experts`."""
    return step.__module__.rpartition(".")[2]
