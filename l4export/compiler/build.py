"""Checkpoint in, engine directory out. The passes in between are listed in `l4export.compiler.pipeline`."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from l4export.calibration.activation_scales import activation_scales
from l4export.calibration.kv_scales import kv_scales
from l4export.calibration.weight_codes import StoredPart
from l4export.compiler.directory import CALIBRATION, CALIBRATION_REPORT, EngineDirectory
from l4export.compiler.manifest import decoder_profiles, engine_manifest, prefill_tokens
from l4export.compiler.pipeline import KV_BITS
from l4export.compiler.plan import DEFAULT_MAX_CONTEXT, DTYPES, STEM, BuildOptions, BuildPlan, plan_build
from l4export.compiler.provenance import generator
from l4export.compiler.reuse import is_up_to_date, may_have_weights, previous_engine, reusable_weights, take_over
from l4export.engine.companions import check_companions
from l4export.engine.manifest import Manifest
from l4export.errors import EnvironmentLacks, InputError, StorageError
from l4export.machine.tensorrt import MODULES
from l4export.quantization.weights import CalibratedWeight
from l4export.storage.file_records import FileRecord, file_record
from l4export.storage.journal import JOURNAL, Journal
from l4export.targets.genai_config import GENAI_LAYOUTS, genai_config
from l4export.targets.tensorrt.compile import check_memory, check_tensorrt, compile_engine
from l4export.targets.tensorrt.parts import constant_bytes, decoder_parts
from l4export.weights.emission import emit_data, emit_graph
from l4export.weights.evaluation import Output, Stack
from l4export.weights.placement import INLINE_BYTES, plan_digest
from l4export.weights.recipes import Cast

__all__ = [
    "DEFAULT_MAX_CONTEXT",
    "DTYPES",
    "KEPT",
    "BuildOptions",
    "BuildPlan",
    "build",
    "plan_build",
]

KEPT = "what was written is kept: run the same command again to go on"
_GENAI_CONFIG = "genai_config.json"
_NOT_IN_DATA = {
    "jobs",
    "memory_budget",
    "force",
    "dump_ir",
    "calibrate",
    "kv_dtype",
    "kv_calibrate",
    "activations",
    "auto",
}
"""Options that change no byte of a data file, or change the plan of it, or whose contents count and not the path."""


def build(
    checkpoint_path: Path,
    engine_path: Path,
    options: BuildOptions | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Manifest:
    """Build an engine directory from a checkpoint; returns its manifest.

    `on_progress(written, total)` counts bytes of weights; its first call tells what an earlier build had written.
    `on_notice(line)` is told what else a person may want to know. The directory appears under its name only when
    complete. What a build that was killed or that failed has written is gone on with.

    Raises:
        InputError: a checkpoint, an option or a weight that cannot be built; an output that exists (without `force`);
            a checkpoint that changed meanwhile.
        EnvironmentLacks: the KV cache is quantised and onnxruntime is missing; nothing to compile with, or too little
            memory for it.
        StorageError: reading or writing failed.
    """
    options = options or BuildOptions()
    directory = EngineDirectory(engine_path, replace=options.force)
    directory.check()
    if options.dump_ir is not None and directory.path in [(p := options.dump_ir.absolute()), *p.parents]:
        raise InputError(f"--dump-ir {options.dump_ir}: lies inside the engine; choose another directory")
    planned = plan_build(checkpoint_path, options)
    if planned.kv_calibration or planned.activation_calibration:
        _check_can_measure()
    if options.target in MODULES:
        check_tensorrt(options.target)
        check_memory(max(constant_bytes(part.graph) for _, part in decoder_parts(planned.model, planned.parts, STEM)))
    try:
        return _Build(planned, directory, on_progress, on_notice or (lambda _: None)).run()
    except OSError as error:
        outcome = KEPT if directory.partial.exists() else "nothing was built"
        raise StorageError(f"{error.filename or engine_path}: {error.strerror or error}; {outcome}") from error


class _Build:
    """One build, from its plan on."""

    def __init__(
        self,
        planned: BuildPlan,
        directory: EngineDirectory,
        on_progress: Callable[[int, int], None] | None,
        on_notice: Callable[[str], None],
    ) -> None:
        self.planned, self.directory = planned, directory
        self.on_progress, self.on_notice = on_progress, on_notice
        self.files = planned.files
        self.written = 0

    def run(self) -> Manifest:
        """Everything that reads or writes weights."""
        planned, directory, graph = self.planned, self.directory, f"{STEM}.onnx"
        with planned.sources.reader() as reader:  # along with the workers
            weights = None
            old = previous_engine(directory.path)
            if old and may_have_weights(old, engine_manifest(planned, {}, {}), self.files):
                draft = engine_manifest(planned, {}, reader.records())
                if is_up_to_date(directory.path, old, draft, _companions(planned.checkpoint.path)):
                    self.on_notice(f"{directory.path.name} is up to date; every file was checked, none was written")
                    return old
                if not self._graph_holds_codes():
                    weights = reusable_weights(directory.path, old, draft, self.files, graph)
            with directory.writing(0 if weights else self._room()) as partial:
                if weights:
                    self.on_notice("the weights have not changed; they are taken over from the engine that is there")
                    directory.clear()
                    take_over(directory.path, partial, [*weights, *self._reports()])
                else:
                    weights = self._emit(partial)
                final = self._with_scales(partial)
                emit_graph(final.model, final.files, partial, STEM)
                extra = self._for_runtime(partial, final)
                for name in (companions := _companions(planned.checkpoint.path)):
                    shutil.copyfile(planned.checkpoint.path / name, partial / name)
                others = (graph, *extra, *companions, *self._reports())
                records = weights | {name: file_record(partial / name) for name in others}
                manifest = engine_manifest(planned, dict(sorted(records.items())), reader.records())
                planned.sources.check_unchanged()
                directory.finish(manifest.to_json())
        return manifest

    def _for_runtime(self, partial: Path, planned: BuildPlan) -> list[str]:
        """The files that the target's runtime wants beside the graph; their names."""
        options = planned.options
        if options.target in MODULES:
            return self._compile(partial, planned)
        if options.kv_layout not in GENAI_LAYOUTS or options.target == "ort-cuda":
            return []
        tokens, fp8 = prefill_tokens(planned), options.activations is not None
        text = genai_config(planned.config, options.kv_layout, planned.max_context, tokens, fp8)
        (partial / _GENAI_CONFIG).write_text(text, encoding="utf-8")
        return [_GENAI_CONFIG]

    def _compile(self, partial: Path, planned: BuildPlan) -> list[str]:
        """Every part's graph and the engine made of it; their names."""
        options = planned.options
        profiles = decoder_profiles(planned)
        names: list[str] = []
        parts = decoder_parts(planned.model, planned.parts, STEM)
        for number, (name, part) in enumerate(parts, start=1):
            self.on_notice(f"compiling with {MODULES[options.target]}, engine {number} of {len(parts)}")
            graph, engine = emit_graph(part, (), partial, name), f"{name}.engine"
            compile_engine(options.target, partial / graph, partial / engine, options.compute_capabilities, profiles)
            names += [graph, engine]
        return names

    def _emit(self, partial: Path) -> dict[str, FileRecord]:
        options = self.planned.options
        with Journal(partial, _journal_head(self.planned)) as journal:
            if journal.changed:
                self.on_notice(
                    f"starting afresh: {_listed(journal.changed)} changed since the build that was cut short"
                )
            written = [JOURNAL, *(file.name for file in self.files)] if journal.entries else []
            self.directory.clear(keep=[*written, *([CALIBRATION] if self.planned.calibration else [])])
            journal.start()
            self._calibrate(partial)
            return emit_data(
                self.files, partial, options.workers, options.weights_budget, journal, self._resumed, self._advance
            )

    def _calibrate(self, partial: Path) -> None:
        """Find the codes of the weights that are calibrated, and write how it went."""
        plan, options = self.planned.calibration, self.planned.options
        if plan is None:
            return
        from l4export.calibration.weight_codes import calibrate
        from l4export.reference.streamed_model import StreamedReference

        plan.directory = partial / CALIBRATION
        head = _journal_head(self.planned)
        head = {name: head[name] for name in ("l4export", "checkpoint", "calibration")}
        reference = StreamedReference(self.planned.checkpoint.path, options.layers)
        report = calibrate(plan, reference, head, self.on_notice)
        (partial / CALIBRATION_REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    def _graph_holds_codes(self) -> bool:
        """Whether calibrated tensors are so small that they lie in the graph: then it cannot be made without them."""
        tensors = [value.const_value for value in self.planned.model.graph.initializers.values()]
        return any(_is_calibrated(tensor) and tensor.nbytes <= INLINE_BYTES for tensor in tensors if tensor)

    def _reports(self) -> list[str]:
        return [CALIBRATION_REPORT] if self.planned.calibration else []

    def _room(self) -> int:
        """Bytes that a build writes: the data files, and what a calibration keeps until they are there."""
        plan, size = self.planned.calibration, sum(file.size for file in self.files)
        if plan is not None:
            size += plan.nbytes + 2 * 2 * 4 * plan.text.tokens * self.planned.config.hidden_size
        if self.planned.parts:
            size *= 2  # engines hold the weights again
        return size

    def _with_scales(self, partial: Path) -> BuildPlan:
        """The plan with the scales of cache and activations, as this engine's weights give them with float ones."""
        planned, options = self.planned, self.planned.options
        if text := planned.kv_calibration:
            self.on_notice(f"calibrating the KV cache: {text.tokens} tokens of {text.name}")
            manifest = self._unscaled(partial, kv_dtype=None, kv_calibrate=None)
            caches = kv_scales(partial, manifest, text.sequences[0], KV_BITS[options.cache_dtype])
            return self._planned_again(partial, options, kv_scales=caches)
        if text := planned.activation_calibration:
            self.on_notice(f"calibrating activations: {text.tokens} tokens of {text.name}")
            onnx = {"target": "onnx", "compute_capabilities": ()}
            manifest = self._unscaled(partial, activations=None, calibrate=None, **onnx)
            inputs = activation_scales(partial, manifest, text.sequences[0])
            return self._planned_again(partial, options, activation_scales=inputs)
        return planned

    def _unscaled(self, partial: Path, **changes: Any) -> Manifest:
        """Writes the graph of other options for the weights that are written; its manifest."""
        graph = f"{STEM}.onnx"
        other = self._planned_again(partial, dataclasses.replace(self.planned.options, dump_ir=None, **changes))
        emit_graph(other.model, other.files, partial, STEM)
        return engine_manifest(other, {graph: file_record(partial / graph)}, {})

    def _planned_again(self, partial: Path, options: BuildOptions, **scales: Any) -> BuildPlan:
        """Another graph for the weights that are written."""
        planned = plan_build(self.planned.checkpoint.path, options, **scales)
        if planned.calibration:
            planned.calibration.directory = partial / CALIBRATION
        return planned

    def _resumed(self, count: int) -> None:
        if count:
            self.on_notice(f"resuming: {count / 1e9:.3f} of {self._total / 1e9:.3f} GB were already written")
        self._advance(count)

    def _advance(self, count: int) -> None:
        self.written += count
        if self.on_progress:
            self.on_progress(self.written, self._total)

    @property
    def _total(self) -> int:
        return sum(placed.recipe.nbytes for file in self.files for placed in file.placements)


def _check_can_measure() -> None:
    """Before the weights are written, not after."""
    try:
        importlib.import_module("onnxruntime")
    except ImportError as error:
        raise EnvironmentLacks(
            "the scales of an int8 or int4 KV cache are measured by running the engine, which needs onnxruntime: "
            "pip install 'l4export[cpu]'"
        ) from error


def _is_calibrated(tensor: ir.TensorProtocol) -> bool:
    """Whether it is of a `CalibratedWeight`, alone or packed with others, or a calibrated router."""
    if isinstance(tensor, Cast):
        return isinstance(tensor.part, StoredPart)
    evaluation = tensor.evaluation if isinstance(tensor, Output) else None
    if isinstance(evaluation, Stack):
        return any(map(_is_calibrated, evaluation.parts))
    return isinstance(evaluation, CalibratedWeight)


def _companions(checkpoint: Path) -> dict[str, FileRecord]:
    """Tokenizer, chat template and generation defaults, where the checkpoint has them: they are copied as they are."""
    return {name: file_record(checkpoint / name) for name in check_companions(checkpoint)}


def _journal_head(planned: BuildPlan) -> dict[str, str]:
    """Everything that decides the bytes of the data files."""
    options = {name: str(value) for name, value in dataclasses.asdict(planned.options).items()}
    stamps = [[path.name, size, time] for path, size, time in planned.sources.stamps]
    checkpoint = f"{planned.checkpoint.header_digest()} {stamps}"
    return {
        "l4export": generator(),
        "checkpoint": hashlib.sha256(checkpoint.encode()).hexdigest(),
        "options": ", ".join(f"{name} {value}" for name, value in options.items() if name not in _NOT_IN_DATA),
        "plan": plan_digest(planned.files),
        **({"calibration": planned.calibration.digest()} if planned.calibration else {}),
    }


def _listed(changed: list[str]) -> str:
    """The causes: another plan follows from another option."""
    causes = [name for name in changed if name != "plan"] or changed
    return " and ".join(name if name == "l4export" else f"the {name}" for name in causes)
