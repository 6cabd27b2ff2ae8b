"""Scales that are measured with an engine's own weights. The graph that is run does not round what is measured."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from l4export import passes
from l4export.calibration.activation_scales import activation_scales
from l4export.calibration.kv_scales import kv_scales
from l4export.compiler.compile import compile_decoder
from l4export.compiler.manifest import engine_manifest
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import BuildPlan
from l4export.engine.kv_cache import KV_BITS
from l4export.engine.manifest import DECODER
from l4export.errors import EnvironmentLacks
from l4export.storage.file_records import file_record
from l4export.weights.emission import emit_graph

__all__ = ["check_can_run", "measure_scales"]


def check_can_run(planned: BuildPlan) -> None:
    """Check that what a build runs can be run, before any weight is written.

    Raises:
        EnvironmentLacks: onnxruntime is missing, and scales are measured or a check graph is recorded.
    """
    if planned.scales_text:
        _check_onnxruntime(
            "the scales of an int8 or int4 KV cache, and of FP8 activations, are measured by running the engine, which "
            "needs onnxruntime: pip install 'l4export[cpu]'"
        )
    if planned.target.is_judged:
        _check_onnxruntime(
            "an engine for a GPU carries the numbers that a CPU gives, for which its build needs onnxruntime: "
            "pip install 'l4export[cpu]', or 'l4export[cuda]' where the engine is to run"
        )


def _check_onnxruntime(otherwise: str) -> None:
    try:
        importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EnvironmentLacks(otherwise) from error


def measure_scales(
    planned: BuildPlan, directory: Path, on_notice: Callable[[str], None]
) -> ir.passes.InPlacePass | None:
    """The pass that brings the measured scales into the planned graph; None where nothing is measured.

    Writes a graph into `directory`, next to the data files that it refers to. The engine's own graph replaces it later.

    Raises:
        InputError: a value that is not finite on the text.
        EnvironmentLacks: onnxruntime is missing.
    """
    text = planned.scales_text
    if text is None:
        return None
    what = "activations" if planned.options.activations else "the KV cache"
    on_notice(f"calibrating {what}: {text.tokens} tokens of {text.name}")
    observed = _as_observed(planned.options)
    graph = compile_decoder(planned.inputs, observed, planned.calibration_directory)
    name = emit_graph(graph.model, graph.files, directory, DECODER)
    unmeasured = dataclasses.replace(planned, options=observed, graphs=(graph,), parts=())
    manifest = engine_manifest(unmeasured, {name: file_record(directory / name)}, {})
    if planned.options.activations:
        return passes.SetActivationScales(activation_scales(directory, manifest, text.sequences[0]))
    return passes.SetKVScales(kv_scales(directory, manifest, text.sequences[0], KV_BITS[planned.options.cache_dtype]))


def _as_observed(options: BuildOptions) -> BuildOptions:
    """The engine that is run: the same weights, caches and activations in the computing type, for a CPU."""
    if options.activations:
        return dataclasses.replace(options, target="onnx", activations=None, compute_capabilities=())
    return dataclasses.replace(options, kv_dtype=None)
