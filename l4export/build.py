"""Checkpoint in, engine directory out. The passes in between are listed in `l4export.pipeline`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx_ir as ir

from l4export.build_plan import DEFAULT_MAX_CONTEXT, DTYPES, STEM, BuildOptions, BuildPlan, plan_build
from l4export.companions import check_companions
from l4export.emission import emit_data, emit_graph
from l4export.engine_directory import CALIBRATION, CALIBRATION_REPORT, EngineDirectory
from l4export.errors import InputError, StorageError
from l4export.genai import genai_config
from l4export.journal import JOURNAL, Journal
from l4export.manifest import FileRecord, KVLayer, Manifest, file_record
from l4export.placement import INLINE_BYTES, plan_digest
from l4export.provenance import generator
from l4export.quantization.weights import CalibratedWeight
from l4export.recipes import Output
from l4export.reuse import is_up_to_date, may_have_weights, previous_engine, reusable_weights, take_over

__all__ = ["DEFAULT_MAX_CONTEXT", "DTYPES", "KEPT", "BuildOptions", "BuildPlan", "build", "plan_build"]

KEPT = "what was written is kept: run the same command again to go on"
_PREFILL_TOKENS = 512
_GENAI_CONFIG = "genai_config.json"
_NOT_IN_BYTES = {"jobs", "memory_budget", "force", "dump_ir", "calibrate"}
"""Options that change no byte of an engine, or whose contents count and not the path."""


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
        StorageError: reading or writing failed.
    """
    options = options or BuildOptions()
    directory = EngineDirectory(engine_path, replace=options.force)
    directory.check()
    if options.dump_ir is not None and directory.path in [(p := options.dump_ir.absolute()), *p.parents]:
        raise InputError(f"--dump-ir {options.dump_ir}: lies inside the engine; choose another directory")
    planned = plan_build(checkpoint_path, options)
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
        with ThreadPoolExecutor(max_workers=1) as hasher:
            source = hasher.submit(planned.sources.record)  # reads along with the workers
            weights = None
            old = previous_engine(directory.path)
            if old and may_have_weights(old, _manifest(planned, {}, {}), self.files):
                draft = _manifest(planned, {}, source.result())
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
                emit_graph(planned.model, self.files, partial, STEM)
                (partial / _GENAI_CONFIG).write_text(_genai(planned), encoding="utf-8")
                for name in (companions := _companions(planned.checkpoint.path)):
                    shutil.copyfile(planned.checkpoint.path / name, partial / name)
                others = (graph, _GENAI_CONFIG, *companions, *self._reports())
                records = weights | {name: file_record(partial / name) for name in others}
                manifest = _manifest(planned, dict(sorted(records.items())), source.result())
                planned.sources.check_unchanged()
                directory.finish(manifest.to_json())
        return manifest

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
                self.files, partial, options.workers, options.memory_budget, journal, self._resumed, self._advance
            )

    def _calibrate(self, partial: Path) -> None:
        """Find the codes of the weights that are calibrated, and write how it went."""
        plan, options = self.planned.calibration, self.planned.options
        if plan is None:
            return
        from l4export.calibration import calibrate
        from l4export.streamed_reference import StreamedReference

        plan.directory = partial / CALIBRATION
        head = _journal_head(self.planned)
        head = {name: head[name] for name in ("l4export", "checkpoint", "calibration")}
        reference = StreamedReference(self.planned.checkpoint.path, options.layers)
        report = calibrate(plan, reference, head, self.on_notice)
        (partial / CALIBRATION_REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    def _graph_holds_codes(self) -> bool:
        """Whether calibrated tensors are so small that they lie in the graph: then it cannot be made without them."""
        tensors = [value.const_value for value in self.planned.model.graph.initializers.values()]
        found = [t for t in tensors if isinstance(t, Output) and isinstance(t.evaluation, CalibratedWeight)]
        return any(tensor.nbytes <= INLINE_BYTES for tensor in found)

    def _reports(self) -> list[str]:
        return [CALIBRATION_REPORT] if self.planned.calibration else []

    def _room(self) -> int:
        """Bytes that a build writes: the data files, and what a calibration keeps until they are there."""
        plan, size = self.planned.calibration, sum(file.size for file in self.files)
        if plan is not None:
            size += plan.nbytes + 2 * 4 * plan.text.tokens * self.planned.config.hidden_size
        return size

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
        "options": ", ".join(f"{name} {value}" for name, value in options.items() if name not in _NOT_IN_BYTES),
        "plan": plan_digest(planned.files),
        **({"calibration": planned.calibration.digest()} if planned.calibration else {}),
    }


def _listed(changed: list[str]) -> str:
    """The causes: another plan follows from another option."""
    causes = [name for name in changed if name != "plan"] or changed
    return " and ".join(name if name == "l4export" else f"the {name}" for name in causes)


def _genai(planned: BuildPlan) -> str:
    return genai_config(planned.config, planned.options.kv_layout, planned.max_context, _PREFILL_TOKENS)


def _manifest(planned: BuildPlan, files: dict[str, FileRecord], source: dict[str, Any]) -> Manifest:
    config, options = planned.config, planned.options
    capacity = planned.max_context if options.kv_layout == "static" else None
    graph = planned.model.graph
    return Manifest(
        generator=generator(),
        target=options.target,
        model=config,
        precision={
            "weights": options.dtype,
            "compute": options.dtype,
            "kv_cache": options.dtype,
            "quant": _quant(options),
        },
        max_context=planned.max_context,
        kv_layout=options.kv_layout,
        kv_layers=tuple(KVLayer("chunked" if chunked else "full", capacity) for chunked in config.chunked_layers),
        prefill_max_tokens=_PREFILL_TOKENS,
        inputs=tuple(_interface(value) for value in graph.inputs),
        outputs=tuple(_interface(value) for value in graph.outputs),
        passes=planned.passes,
        options={
            "dtype": options.dtype,
            "kv_layout": options.kv_layout,
            "max_context": planned.max_context,
            **({"layers": list(options.layers)} if options.layers else {}),
            **({"policy": options.policy.to_dict()} if options.policy else {}),
            **({"calibration": planned.calibration.text.to_dict()} if planned.calibration else {}),
        },
        source=source,
        files=files,
    )


def _quant(options: BuildOptions) -> str:
    """The kinds of quantisation in use, such as "int4, int8", or "none"."""
    return ", ".join(sorted({rule.kind for rule in options.policy.rules})) if options.policy else "none"


def _interface(value: ir.Value) -> dict[str, Any]:
    assert value.dtype is not None and value.shape is not None
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return {"name": str(value.name), "dtype": value.dtype.numpy().name, "shape": shape}
