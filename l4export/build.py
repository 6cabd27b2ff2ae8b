"""Checkpoint in, engine directory out. The passes in between are listed in `l4export.pipeline`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from l4export import __version__
from l4export.checkpoint import Checkpoint, open_checkpoint
from l4export.emission import emit, plan
from l4export.engine_directory import EngineDirectory
from l4export.errors import InputError, StorageError
from l4export.genai import genai_config
from l4export.manifest import FileRecord, KVLayer, Manifest, file_record
from l4export.pipeline import TARGETS, PipelineOptions, run_pipeline
from l4export.recipes import Recipe, Source
from l4export.reference import build_reference

__all__ = ["DEFAULT_MAX_CONTEXT", "DTYPES", "BuildOptions", "BuildPlan", "build", "plan_build"]

DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
DEFAULT_MAX_CONTEXT = 8192
_PREFILL_TOKENS = 512
_DUMPED_WEIGHTS_BYTES = 64 << 20
_STEM = "decoder"
_COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class BuildOptions:
    """What to build. `max_context` None means the model's own limit, at most 8192; `jobs` None means one a core."""

    target: str = "ort-cpu"
    dtype: str = "fp32"
    kv_layout: str = "static"
    max_context: int | None = None
    jobs: int | None = None
    force: bool = False
    dump_ir: Path | None = None


@dataclass(frozen=True)
class BuildPlan:
    """A compiled graph whose weights are still recipes: everything is known of the engine but the bytes."""

    checkpoint: Checkpoint
    model: ir.Model
    options: BuildOptions
    max_context: int
    passes: tuple[str, ...]

    @property
    def data_files(self) -> dict[str, int]:
        """Name and size in bytes of each data file to be written."""
        return {file.name: file.size for file in plan(self.model, _STEM)}


def plan_build(checkpoint_path: Path, options: BuildOptions) -> BuildPlan:
    """Open the checkpoint, build its reference graph and run the pipeline. Reads no weights.

    `options.dump_ir` names a directory for the graph after every pass.

    Raises:
        InputError: a checkpoint or an option that cannot be built; by name.
    """
    _check(options)
    checkpoint = open_checkpoint(checkpoint_path)
    max_context = _max_context(checkpoint, options)

    def weights(name: str, shape: tuple[int, ...]) -> Recipe:
        return Source(checkpoint.tensor(name, shape))

    model = build_reference(checkpoint.config, weights, DTYPES[options.dtype])
    pipeline_options = PipelineOptions(options.target, options.kv_layout, max_context)
    passes = run_pipeline(model, pipeline_options, _dumper(options.dump_ir))
    model.producer_name, model.producer_version = "l4export", __version__
    return BuildPlan(checkpoint, model, options, max_context, tuple(passes))


def build(
    checkpoint_path: Path,
    engine_path: Path,
    options: BuildOptions | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Build an engine directory from a checkpoint; returns its manifest.

    `on_progress(written, total)` counts bytes of weights. The directory appears under its name only when complete.

    Raises:
        InputError: a checkpoint, an option or a weight that cannot be built; an output that exists (without `force`).
        StorageError: reading or writing failed.
    """
    options = options or BuildOptions()
    directory = EngineDirectory(engine_path, replace=options.force)
    directory.check()
    planned = plan_build(checkpoint_path, options)
    total = sum(planned.data_files.values())
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        if on_progress:
            on_progress(written, total)

    try:
        with directory.writing(total) as partial, ThreadPoolExecutor(max_workers=1) as hasher:
            source = hasher.submit(_source_record, planned.checkpoint)
            names = emit(planned.model, partial, _STEM, options.jobs or os.cpu_count() or 1, advance)
            names += _copy_companions(planned.checkpoint.path, partial)
            (partial / "genai_config.json").write_text(_genai(planned), encoding="utf-8")
            records = {name: file_record(partial / name) for name in sorted([*names, "genai_config.json"])}
            manifest = _manifest(planned, records, source.result())
            directory.finish(manifest.to_json())
    except OSError as error:
        raise StorageError(f"{error.filename or engine_path}: {error.strerror or error}; nothing was built") from error
    return manifest


def _check(options: BuildOptions) -> None:
    if options.target not in TARGETS:
        raise InputError(f"--target {options.target} is not one of {', '.join(TARGETS)}")
    if options.dtype not in DTYPES:
        raise InputError(f"--dtype {options.dtype} is not one of {', '.join(DTYPES)}")
    if options.target == "ort-cpu" and options.dtype == "bf16":
        raise InputError("--dtype bf16: ONNX Runtime's CPU provider has no bfloat16 MatMul; use fp32 or fp16")
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs {options.jobs} must be at least 1")


def _max_context(checkpoint: Checkpoint, options: BuildOptions) -> int:
    limit = checkpoint.config.max_position_embeddings
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


def _copy_companions(checkpoint: Path, target: Path) -> list[str]:
    """Tokenizer, chat template and generation defaults, where the checkpoint has them."""
    names = [name for name in _COPIED_FILES if (checkpoint / name).is_file()]
    for name in names:
        shutil.copyfile(checkpoint / name, target / name)
    return names


def _source_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Digests of what the engine is made from, so that a service can tell which checkpoint it serves."""
    files = ["config.json", *(file.path.name for file in checkpoint.files)]
    records = {name: file_record(checkpoint.path / name) for name in files}
    return {name: {"bytes": record.bytes, "sha256": record.sha256} for name, record in records.items()}


def _genai(planned: BuildPlan) -> str:
    return genai_config(planned.checkpoint.config, planned.options.kv_layout, planned.max_context, _PREFILL_TOKENS)


def _manifest(planned: BuildPlan, files: dict[str, FileRecord], source: dict[str, Any]) -> Manifest:
    config, options = planned.checkpoint.config, planned.options
    capacity = planned.max_context if options.kv_layout == "static" else None
    graph = planned.model.graph
    return Manifest(
        generator=f"l4export {__version__}",
        target=options.target,
        model=config,
        precision={"weights": options.dtype, "compute": options.dtype, "kv_cache": options.dtype, "quant": "none"},
        max_context=planned.max_context,
        kv_layout=options.kv_layout,
        kv_layers=tuple(KVLayer("chunked" if chunked else "full", capacity) for chunked in config.chunked_layers),
        prefill_max_tokens=_PREFILL_TOKENS,
        inputs=tuple(_interface(value) for value in graph.inputs),
        outputs=tuple(_interface(value) for value in graph.outputs),
        passes=planned.passes,
        options={"dtype": options.dtype, "kv_layout": options.kv_layout, "max_context": planned.max_context},
        source=source,
        files=files,
    )


def _interface(value: ir.Value) -> dict[str, Any]:
    assert value.dtype is not None and value.shape is not None
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return {"name": str(value.name), "dtype": value.dtype.numpy().name, "shape": shape}
