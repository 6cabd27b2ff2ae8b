"""The graphs of an engine, lowered for a target, with weights that are still recipes: the decoder, the vision tower."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from l4export._version import __version__
from l4export.calibration.weight_codes import CalibrationPlan
from l4export.compiler.dump import Dump
from l4export.compiler.inputs import BuildInputs
from l4export.compiler.options import BuildOptions
from l4export.compiler.pipeline import pipeline, run_passes, specialisation, vision_pipeline
from l4export.compiler.source_weights import SourceWeights
from l4export.engine.manifest import DECODER, VISION
from l4export.errors import InputError
from l4export.graph.dtypes import FLOATS
from l4export.model.decoder import build_decoder
from l4export.model.tensors import tensors, vision_tensors
from l4export.model.vision_config import VisionConfig
from l4export.model.vision_tower import build_vision_tower
from l4export.quantization.policy import Policy
from l4export.targets import TARGETS, GraphOptions
from l4export.weights.placement import DataFile, place_weights

__all__ = ["CompiledGraph", "compile_decoder", "compile_graphs"]


@dataclass(frozen=True)
class CompiledGraph:
    """A lowered graph. Everything about it is known except the bytes of its weights.

    Attributes:
        name: Its name in the manifest, and what the names of its files begin with.
        model: The graph; its initializers are recipes.
        portable: The same before the passes to forms that only the target's device executes; `model` itself where there
            are none. A CPU can run it.
        passes: The names of the passes that made it.
        files: Where the weights go.
        source_files: Names of the checkpoint's files that it reads.
        calibration: What finds the codes of its weights; None where they are rounded to nearest.
    """

    name: str
    model: ir.Model
    portable: ir.Model
    passes: tuple[str, ...]
    files: tuple[DataFile, ...]
    source_files: tuple[str, ...]
    calibration: CalibrationPlan | None

    @property
    def file(self) -> str:
        """The name of the graph's file."""
        return f"{self.name}.onnx"


def compile_graphs(
    inputs: BuildInputs, options: BuildOptions, calibration_directory: Path, dump: Dump | None = None
) -> tuple[CompiledGraph, ...]:
    """Every graph of the engine, the decoder first. Arguments and errors are those of `compile_decoder`."""
    decoder = compile_decoder(inputs, options, calibration_directory, dump)
    return (decoder,) if inputs.vision is None else (decoder, _compile_tower(inputs, inputs.vision, options, dump))


def compile_decoder(
    inputs: BuildInputs, options: BuildOptions, calibration_directory: Path, dump: Dump | None = None
) -> CompiledGraph:
    """Build the model's decoder and run the target's passes on it. Reads no weights.

    Args:
        inputs: The opened checkpoint.
        options: What is built; of a quantised cache and of rounded activations every scale is one.
        calibration_directory: Where a calibration keeps the codes of weights.
        dump: Receives the graph after every pass.

    Raises:
        InputError: a weight that is missing or of another shape, one that the config does not know, or an option that
            does not fit the model.
    """
    sources = SourceWeights(inputs, options.layers)
    image_token = inputs.vision.image_token_id if inputs.vision else None
    model = build_decoder(inputs.config, sources.recipe, FLOATS[options.float_dtype], image_token)
    sources.check_all_known()
    text = inputs.texts.weights
    calibration = CalibrationPlan(text, calibration_directory) if text else None
    model, portable, passes = _lowered(model, options.target, _graph_options(inputs, options, calibration), dump)
    TARGETS[options.target].check_graph(model)
    if calibration and not calibration.schemes:
        raise InputError("--calibrate: no weight of a layer is quantised to integers; add --quant int4 or int8")
    return _placed(DECODER, model, portable, passes, sources.files(), calibration)


def _compile_tower(
    inputs: BuildInputs, config: VisionConfig, options: BuildOptions, dump: Dump | None
) -> CompiledGraph:
    """Build the vision tower, whose features have the decoder's dtype, and run the target's passes on it."""
    sources = SourceWeights(inputs)
    dtype, features_dtype = FLOATS[options.tower_dtype], FLOATS[options.float_dtype]
    model = build_vision_tower(config, inputs.config.hidden_size, sources.tower_recipe, dtype, features_dtype)
    sources.check_tower_known()
    on_stage = None if dump is None else lambda index, name, stage: dump(index, f"{VISION}-{name}", stage)
    passes = run_passes(model, vision_pipeline(options.target, _policies(inputs, options)[1]), on_stage)
    return _placed(VISION, model, model, passes, tuple(sorted(sources.file_names)), None)


def _policies(inputs: BuildInputs, options: BuildOptions) -> tuple[Policy | None, Policy | None]:
    """The policy's rules for the decoder, where one that names nothing is refused, and its rules for the tower."""
    policy = options.policy
    if policy is None or inputs.vision is None:
        return policy, None
    text, tower = tensors(inputs.config), vision_tensors(inputs.vision, inputs.config.hidden_size)
    of_tower = [rule for rule in policy.rules if any(map(rule.matches, tower))]
    of_text = [rule for rule in policy.rules if rule not in of_tower or any(map(rule.matches, text))]
    of_each = (dataclasses.replace(policy, rules=tuple(rules)) if rules else None for rules in (of_text, of_tower))
    decoder, vision = of_each
    return decoder, vision


def _placed(
    name: str,
    model: ir.Model,
    portable: ir.Model,
    passes: tuple[str, ...],
    source_files: tuple[str, ...],
    calibration: CalibrationPlan | None,
) -> CompiledGraph:
    model.producer_name, model.producer_version = "l4export", __version__
    return CompiledGraph(name, model, portable, passes, tuple(place_weights(model, name)), source_files, calibration)


def _lowered(
    model: ir.Model, target: str, options: GraphOptions, dump: Dump | None
) -> tuple[ir.Model, ir.Model, tuple[str, ...]]:
    """The target's graph, the same as a CPU can run it, and the names of the passes."""
    names = run_passes(model, pipeline(target, options), dump)
    steps = specialisation(target, options)
    if not steps:
        return model, model, names
    special = model.clone()
    return special, model, (*names, *run_passes(special, steps, dump, first=len(names) + 1))


def _graph_options(inputs: BuildInputs, options: BuildOptions, calibration: CalibrationPlan | None) -> GraphOptions:
    return GraphOptions(
        kv_layout=options.kv_layout,
        max_context=inputs.max_context,
        policy=_policies(inputs, options)[0],
        kv_dtype=None if options.cache_dtype == options.float_dtype else options.cache_dtype,
        calibration=calibration,
        activations=options.activations,
    )
