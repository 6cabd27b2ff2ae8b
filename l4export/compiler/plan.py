"""What a build will do. Everything about the engine is known except the bytes of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from l4export import passes
from l4export.calibration.text import CalibrationText
from l4export.calibration.weight_codes import CalibrationPlan
from l4export.compiler.auto_policy import WeightChoice, with_chosen_policy
from l4export.compiler.compile import CompiledGraph, compile_graphs
from l4export.compiler.dump import Dump
from l4export.compiler.inputs import BuildInputs, open_inputs
from l4export.compiler.options import BuildOptions, check_options
from l4export.compiler.pipeline import pass_name
from l4export.compiler.provenance import Sources
from l4export.engine.kv_cache import prefill_cut
from l4export.engine.profiles import TokenRange, token_profiles
from l4export.model.config import ModelConfig
from l4export.targets import TARGETS, LayerRange, Target
from l4export.targets.kept_codes import StoredCodes, keep_codes
from l4export.weights.emission import check_budget
from l4export.weights.placement import DataFile

__all__ = ["PREFILL_TOKENS", "BuildPlan", "plan_build"]

PREFILL_TOKENS = 512
"""Tokens that a runtime feeds in one call at most."""


@dataclass(frozen=True)
class BuildPlan:
    """A build that has not read a weight.

    Attributes:
        inputs: What is read.
        options: What was asked for, with the policy that `--quant auto` chose, and rules for codes that are kept.
        graphs: The engine's graphs, the decoder first.
        sources: The checkpoint's files that it reads, opened.
        parts: The layers of each engine to be compiled; empty where nothing is compiled.
        calibration_directory: Where a calibration keeps the codes of weights.
        dump: Receives the graph after every pass; None: nothing does.
        stored_codes: What becomes of weights that the checkpoint stores quantised.
    """

    inputs: BuildInputs
    options: BuildOptions
    graphs: tuple[CompiledGraph, ...]
    sources: Sources
    parts: tuple[LayerRange, ...]
    calibration_directory: Path
    dump: Dump | None
    stored_codes: tuple[StoredCodes, ...] = ()

    @property
    def target(self) -> Target:
        """What the engine is for."""
        return TARGETS[self.options.target]

    @property
    def graph(self) -> CompiledGraph:
        """The engine's decoder."""
        return self.graphs[0]

    @property
    def tower(self) -> CompiledGraph | None:
        """The vision tower; None where none is built."""
        return self.graphs[1] if len(self.graphs) > 1 else None

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Every graph's data files."""
        return tuple(file for graph in self.graphs for file in graph.files)

    @property
    def headers(self) -> Mapping[str, bytes]:
        """What data files begin with: the first weight."""
        return {}

    @property
    def calibration(self) -> CalibrationPlan | None:
        """What finds the codes of the decoder's weights; None where they are rounded to nearest."""
        return self.graph.calibration

    @property
    def weight_options(self) -> Mapping[str, object]:
        """The options that decide the bytes of weights, but for adapters and texts."""
        options = self.options
        return {
            "target": options.target,
            "dtype": options.float_dtype,
            "layers": options.layers,
            "vision": options.tower_dtype if self.tower else None,
            "policy": options.policy and options.policy.to_dict(),
        }

    @property
    def weight_copies(self) -> int:
        """How often weights are written: compiled engines hold them again."""
        return 2 if self.parts else 1

    @property
    def model(self) -> ir.Model:
        """The lowered decoder."""
        return self.graph.model

    @property
    def config(self) -> ModelConfig:
        """The model that is built."""
        return self.inputs.config

    @property
    def data_files(self) -> dict[str, int]:
        """Name and size in bytes of each data file to be written."""
        return {file.name: file.size for file in self.files}

    @property
    def passes(self) -> tuple[str, ...]:
        """The names of the passes that make the engine's graph; the last one brings in what was measured, if it was."""
        texts, last = self.inputs.texts, list[type[ir.passes.InPlacePass]]()
        if texts.kv_cache:
            last.append(passes.SetKVScales)
        if texts.activations:
            last.append(passes.SetActivationScales)
        return (*self.graph.passes, *map(pass_name, last))

    @property
    def scales_text(self) -> CalibrationText | None:
        """What the scales of the cache, or of activations, are measured on; None where there are no such scales."""
        return self.inputs.texts.kv_cache or self.inputs.texts.activations

    @property
    def prefill_cut(self) -> int | None:
        """No call may have new tokens on both sides of a position that is a multiple of this; None: any call may."""
        return prefill_cut(self.config, self.options.kv_layout)

    @property
    def prefill_tokens(self) -> int:
        """The most tokens that a runtime feeds in one call."""
        return min(PREFILL_TOKENS, self.inputs.max_context, self.prefill_cut or PREFILL_TOKENS)

    @property
    def profiles(self) -> tuple[TokenRange, ...]:
        """Tokens of a call in each optimisation profile."""
        return tuple(token_profiles(self.options.policy is not None, self.options.kv_layout, self.prefill_tokens))


def plan_build(
    checkpoint_path: Path,
    options: BuildOptions,
    calibration_directory: Path = Path("calibration"),
    on_step: Callable[[str], None] | None = None,
) -> BuildPlan:
    """Open the inputs, choose a policy if one is to be chosen, and compile the graph.

    Reads no weights, unless `options.bits_per_weight` asks for a policy by measured damage.

    Args:
        checkpoint_path: A checkpoint directory.
        options: What is asked for.
        calibration_directory: Where a calibration will keep the codes of weights.
        on_step: Receives a line about each measurement for the choice of a policy.

    Raises:
        InputError: a checkpoint or an option that cannot be built; by name.
        EnvironmentLacks: a package is missing that a choice or a text needs.
        StorageError: reading failed, or the directory of `options.dump_ir` cannot be made.
    """
    check_options(options)
    inputs = open_inputs(checkpoint_path, options)
    if options.bits_per_weight is not None:
        options = with_chosen_policy(inputs, options, WeightChoice.of_engine(options), on_step)
    target = TARGETS[options.target]
    policy, stored_codes = keep_codes(
        inputs.checkpoint,
        target,
        options.policy,
        options.layers,
        lambda policy: target.check_options(options.float_dtype, policy, options.compute_capabilities),
    )
    options = dataclasses.replace(options, policy=policy)
    dump = Dump(options.dump_ir) if options.dump_ir else None
    graphs = compile_graphs(inputs, options, calibration_directory, dump)
    names = dict.fromkeys(name for graph in graphs for name in graph.source_files)
    sources = Sources(inputs.source_files(names), inputs.companions)
    for graph in graphs:
        check_budget(graph.files, options.workers, options.weights_budget)
    parts = target.cut(graphs[0].model.graph, options.memory_budget) if target.cut else ()
    return BuildPlan(inputs, options, graphs, sources, parts, calibration_directory, dump, stored_codes)
