"""What is to be built: the options, and the compiled graph whose weights are still recipes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from l4export import __version__
from l4export.calibration.text import CalibrationText, read_calibration_text, read_kv_calibration_text
from l4export.calibration.weight_codes import CalibrationPlan
from l4export.checkpoint import Checkpoint, open_checkpoint
from l4export.compiler.pipeline import KV_BITS, TARGETS, PipelineOptions, run_pipeline
from l4export.compiler.provenance import Sources
from l4export.engine.companions import check_companions
from l4export.engine.kv_cache import KV_DTYPES
from l4export.engine.manifest import DECODER
from l4export.errors import InputError, StorageError
from l4export.machine.tensorrt import MODULES
from l4export.model.config import ModelConfig
from l4export.model.decoder import build_decoder
from l4export.quantization.policy import Policy
from l4export.targets.onnxruntime_cuda import check_cuda_graph, check_cuda_options
from l4export.targets.tensorrt.compile import check_capabilities
from l4export.targets.tensorrt.parts import LayerRange, layer_ranges
from l4export.weights.emission import DEFAULT_BUDGET, check_budget
from l4export.weights.placement import DataFile, place_weights
from l4export.weights.recipes import Recipe, Source

__all__ = ["DEFAULT_MAX_CONTEXT", "DTYPES", "STEM", "BuildOptions", "BuildPlan", "plan_build"]

DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
DEFAULT_MAX_CONTEXT = 8192
STEM = DECODER
_DUMPED_WEIGHTS_BYTES = 64 << 20


@dataclass(frozen=True)
class BuildOptions:
    """What to build. `max_context` None means the model's own limit, at most 8192; `jobs` None means one a core.

    `memory_budget` is in bytes, for weights on their way (see `l4export.weights.emission`), None meaning 512 MiB, and
    for compiling: a decoder that takes more is cut into engines that do not; with None it is one engine. `layers` (A,
    B) builds an engine of the layers A to B - 1 alone. `policy` says what is quantised how
    (`l4export.quantization.policy`); None means nothing.
    `calibrate` is the text or token ids (`l4export.calibration.text`) that integer weights are calibrated on.
    `activations` are `fp8` or None, as computed; then `calibrate` is what their scales are measured on.
    `kv_dtype` None means `dtype`; `kv_calibrate` names the text for the scales of an int8 or int4 cache, whatever the
    weights are.
    `auto` says how the policy was chosen (`l4export.compiler.auto_policy`), for the manifest.
    `compute_capabilities` are those that a TensorRT engine is compiled for, as "8.9".
    """

    target: str = "ort-cpu"
    dtype: str = "fp32"
    kv_layout: str = "static"
    max_context: int | None = None
    jobs: int | None = None
    force: bool = False
    dump_ir: Path | None = None
    memory_budget: int | None = None
    layers: tuple[int, int] | None = None
    policy: Policy | None = None
    calibrate: Path | None = None
    kv_dtype: str | None = None
    kv_calibrate: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    auto: Mapping[str, Any] | None = None
    activations: str | None = None

    @property
    def cache_dtype(self) -> str:
        """`kv_dtype`, or `dtype`."""
        return self.kv_dtype or self.dtype

    @property
    def weights_budget(self) -> int:
        """Bytes of memory for weights on their way."""
        return DEFAULT_BUDGET if self.memory_budget is None else self.memory_budget

    @property
    def workers(self) -> int:
        """`jobs`, or one a core."""
        return self.jobs or os.cpu_count() or 1


@dataclass(frozen=True)
class BuildPlan:
    """A compiled graph whose weights are still recipes: everything is known of the engine but the bytes."""

    checkpoint: Checkpoint
    config: ModelConfig
    """The checkpoint's, or that of its layers in `options.layers`."""
    sources: Sources
    model: ir.Model
    options: BuildOptions
    max_context: int
    passes: tuple[str, ...]
    files: tuple[DataFile, ...]
    """Where the weights go."""

    parts: tuple[LayerRange, ...]
    """The layers of each engine to be compiled; none where nothing is compiled."""

    calibration: CalibrationPlan | None
    """What finds the codes of the weights; None where they are rounded to nearest."""

    kv_calibration: CalibrationText | None
    """What to run for the scales of an int8 or int4 cache, as one sequence; None with a float one."""

    activation_calibration: CalibrationText | None
    """The same for the scales of FP8 activations."""

    @property
    def data_files(self) -> dict[str, int]:
        """Name and size in bytes of each data file to be written."""
        return {file.name: file.size for file in self.files}


def plan_build(
    checkpoint_path: Path,
    options: BuildOptions,
    kv_scales: Mapping[str, NDArray[np.float32]] | None = None,
    activation_scales: Mapping[str, float] | None = None,
) -> BuildPlan:
    """Open the checkpoint, build its reference graph and run the pipeline. Reads no weights.

    `options.dump_ir` names a directory for the graph after every pass. `kv_scales` are those of an int8 or int4 cache
    (`l4export.calibration.kv_scales`), `activation_scales` those of FP8 activations
    (`l4export.calibration.activation_scales`); without them every scale is one, which is enough to plan with.

    Raises:
        InputError: a checkpoint or an option that cannot be built; by name.
    """
    _check(options)
    checkpoint = open_checkpoint(checkpoint_path)
    config = checkpoint.config if options.layers is None else checkpoint.config.slice_layers(*options.layers)
    max_context = _max_context(config, options)
    check_companions(checkpoint.path)
    used = {file.path.name for file in checkpoint.files} if options.layers is None else set()
    names: set[str] = set()
    calibration = _calibration(checkpoint, options)

    def weights(name: str, shape: tuple[int, ...]) -> Recipe:
        stored = _stored_name(name, options.layers)
        tensor = checkpoint.tensor(stored, shape)
        names.add(stored)
        used.add(tensor.file_name)
        return Source(tensor)

    model = build_decoder(config, weights, DTYPES[options.dtype])
    if options.layers is None and (unexpected := checkpoint.unexpected(names)):
        raise InputError(
            f"{checkpoint.path}: tensor {unexpected[0]!r} is no part of the model that config.json describes; "
            "config.json and the weights do not match"
        )
    sources = Sources.of([checkpoint.path / name for name in ("config.json", *sorted(used))])
    kv_dtype = None if options.cache_dtype == options.dtype else options.cache_dtype
    pipeline_options = PipelineOptions(
        *(options.target, options.kv_layout, max_context, options.policy, kv_dtype, kv_scales, calibration),
        activations=options.activations,
        activation_scales=activation_scales,
    )
    passes = run_pipeline(model, pipeline_options, _dumper(options.dump_ir))
    if options.target == "ort-cuda":
        check_cuda_graph(model)
    if calibration and not calibration.schemes:
        raise InputError("--calibrate: no weight of a layer is quantised to integers; add --quant int4 or int8")
    model.producer_name, model.producer_version = "l4export", __version__
    files = place_weights(model, STEM)
    check_budget(files, options.workers, options.weights_budget)
    return BuildPlan(
        *(checkpoint, config, sources, model, options, max_context, tuple(passes), tuple(files)),
        parts=layer_ranges(model.graph, options.memory_budget) if options.target in MODULES else (),
        calibration=calibration,
        kv_calibration=_kv_calibration(checkpoint, options),
        activation_calibration=_activation_calibration(checkpoint, options),
    )


def _check(options: BuildOptions) -> None:
    if options.target not in TARGETS:
        raise InputError(f"--target {options.target} is not one of {', '.join(TARGETS)}")
    if options.dtype not in DTYPES:
        raise InputError(f"--dtype {options.dtype} is not one of {', '.join(DTYPES)}")
    if options.kv_dtype is not None and options.kv_dtype not in KV_DTYPES:
        raise InputError(f"--kv-dtype {options.kv_dtype} is not one of {', '.join(KV_DTYPES)}")
    _check_target(options)
    if options.kv_calibrate is not None and options.cache_dtype not in KV_BITS:
        raise InputError("--kv-calibrate: only scales of --kv-dtype int8 and int4 are calibrated; leave it out")
    if options.calibrate is not None and options.dump_ir is not None:
        raise InputError("--dump-ir: graphs are dumped before anything is calibrated; leave --calibrate out")
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs {options.jobs} must be at least 1")
    if options.weights_budget < 1:
        raise InputError(f"--memory-budget {options.memory_budget} must be a positive number of bytes")


def _check_target(options: BuildOptions) -> None:
    """What a target has no operator or no kernel for."""
    target = options.target
    if target == "ort-cuda":
        check_cuda_options(options.dtype, options.policy)
    if target in {"ort-cpu", "onnx"} and options.dtype == "bf16":
        raise InputError("--dtype bf16: ONNX Runtime's CPU provider has no bfloat16 MatMul; use fp32 or fp16")
    if target != "ort-cpu" and options.kv_layout == "concat":
        raise InputError(f"--kv-layout concat: --target {target} updates caches in place: static, chunked")
    if target != "ort-cpu" and options.cache_dtype != options.dtype:
        raise InputError(f"--kv-dtype {options.cache_dtype}: caches of --target {target} are of --dtype; leave it out")
    if not target.startswith("ort-") and options.calibrate is not None and not options.activations:
        raise InputError(f"--calibrate: weights for --target {target} are rounded to nearest; leave it out")
    if options.activations:
        _check_activations(options)
    if target == "tensorrt-rtx":
        check_capabilities(options.compute_capabilities, options.dtype, options.policy)
    elif options.compute_capabilities:
        raise InputError("--compute-capability is for --target tensorrt-rtx")


def _check_activations(options: BuildOptions) -> None:
    if options.activations != "fp8":
        raise InputError(f"--activations {options.activations} is not fp8")
    if options.target.startswith("ort-"):
        raise InputError(f"--activations fp8: --target {options.target} has no FP8 products; use onnx or tensorrt-rtx")
    if "fp8" not in {rule.kind for rule in options.policy.rules} if options.policy else True:
        raise InputError("--activations fp8: they are multiplied by FP8 weights alone; add --quant fp8")
    if options.dtype == "bf16":
        raise InputError("--activations fp8: their scales are measured in ONNX Runtime, without bf16; use --dtype fp16")


def _calibration(checkpoint: Checkpoint, options: BuildOptions) -> CalibrationPlan | None:
    if options.calibrate is None or options.activations:
        return None
    return CalibrationPlan(read_calibration_text(options.calibrate, checkpoint.path, checkpoint.config))


def _kv_calibration(checkpoint: Checkpoint, options: BuildOptions) -> CalibrationText | None:
    if options.cache_dtype not in KV_BITS:
        return None
    return read_kv_calibration_text(options.kv_calibrate, checkpoint.path, checkpoint.config.vocab_size)


def _activation_calibration(checkpoint: Checkpoint, options: BuildOptions) -> CalibrationText | None:
    if not options.activations:
        return None
    path, vocabulary = options.calibrate, checkpoint.config.vocab_size
    return read_kv_calibration_text(path, checkpoint.path, vocabulary, "--calibrate")


def _stored_name(name: str, layers: tuple[int, int] | None) -> str:
    """The checkpoint's name of a weight whose layer is counted from `layers[0]`."""
    first = layers[0] if layers else 0
    return re.sub(r"^model\.layers\.(\d+)\.", lambda match: f"model.layers.{first + int(match[1])}.", name)


def _max_context(config: ModelConfig, options: BuildOptions) -> int:
    limit = config.max_position_embeddings
    if options.max_context is None:
        return min(limit, DEFAULT_MAX_CONTEXT)
    if not 1 <= options.max_context <= limit:
        raise InputError(f"--max-context {options.max_context}: this model takes 1 to {limit} tokens")
    return options.max_context


def _dumper(directory: Path | None) -> Callable[[int, str, ir.Model], None] | None:
    """Writes `00-reference.onnx`, `01-...` and so on.

    Models up to 64 MiB are dumped with their weights and can be run; of larger ones only the structure is dumped.
    """
    if directory is None:
        return None
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--dump-ir {directory}: {error.strerror}; choose a writable directory") from error

    def dump(index: int, name: str, model: ir.Model) -> None:
        tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
        small = sum(tensor.nbytes for tensor in tensors) <= _DUMPED_WEIGHTS_BYTES
        proto = ir.to_proto(model if small else _without_weights(model))
        (directory / f"{index:02d}-{name}.onnx").write_bytes(proto.SerializeToString(deterministic=True))

    return dump


def _without_weights(model: ir.Model) -> ir.Model:
    """A copy whose recipes are declared to lie in a data file that is not written."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, Recipe):
            value.const_value = ir.ExternalTensor(
                "weights-not-dumped", 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=str(value.name)
            )
    return copy
