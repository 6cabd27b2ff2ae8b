"""Checkpoint in, engine directory out. The passes in between are listed in `l4export.compiler.pipeline`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path

import onnx_ir as ir

from l4export.calibration.weight_codes import StoredPart, calibrate
from l4export.checkpoint import StoredWeight
from l4export.compiler.check_graph import write_check
from l4export.compiler.directory import OutputDirectory
from l4export.compiler.manifest import engine_manifest
from l4export.compiler.measure import check_can_run, measure_scales
from l4export.compiler.options import BuildOptions
from l4export.compiler.ownership import CALIBRATION
from l4export.compiler.plan import BuildPlan, plan_build
from l4export.compiler.portable import write_portable
from l4export.compiler.products import CALIBRATION_REPORT
from l4export.compiler.provenance import generator
from l4export.compiler.reuse import is_up_to_date, may_have_weights, previous_engine, reusable_weights, take_over
from l4export.engine.manifest import Manifest
from l4export.errors import StorageError
from l4export.quantization.packed_codes import PackedCodes
from l4export.quantization.weights import CalibratedWeight
from l4export.storage.file_records import FileRecord, file_record
from l4export.storage.journal import Journal
from l4export.targets import UnfinishedEngine
from l4export.weights.emission import emit_data, emit_graph
from l4export.weights.evaluation import Output, Stack, leaves
from l4export.weights.placement import INLINE_BYTES, plan_digest, units
from l4export.weights.recipes import Cast, Constant, Recipe, Source

__all__ = ["KEPT", "OnProgress", "Say", "build", "run_build"]

KEPT = "what was written is kept: run the same command again to continue"

OnProgress = Callable[[int, int], None]
"""Receives (written, total) bytes of weights; the first call reports what an earlier build had written."""

Say = Callable[[str], None]
"""Receives notices for the user, one line at a time."""


def build(
    checkpoint_path: str | os.PathLike[str],
    engine_path: str | os.PathLike[str],
    options: BuildOptions | None = None,
    on_progress: OnProgress | None = None,
    on_notice: Say | None = None,
) -> Manifest:
    """Build an engine directory from a checkpoint; returns its manifest.

    The directory appears under its name only when it is complete. A build that was killed or that failed continues when
    it is run again.

    Args:
        checkpoint_path: A checkpoint directory.
        engine_path: The engine directory to be made.
        options: What is asked for; None: the defaults.
        on_progress: Receives (written, total) bytes of weights.
        on_notice: Receives notices for the user, one line at a time.

    Raises:
        InputError: a checkpoint, an option or a weight that cannot be built; an output that exists (without `force`);
            a checkpoint that changed during the build.
        EnvironmentLacks: onnxruntime is missing, and the KV cache is quantised or the engine is for CUDA; nothing to
            compile with, or too little memory for it.
        StorageError: reading or writing failed.
    """
    options = options or BuildOptions()
    directory = OutputDirectory(Path(engine_path), replace=options.force)
    directory.check([Path(checkpoint_path), *options.reads], [options.dump_ir] if options.dump_ir else [])
    planned = plan_build(Path(checkpoint_path), options, directory.calibration, on_notice)
    return run_build(planned, directory, on_progress, on_notice)


def run_build(
    planned: BuildPlan,
    directory: OutputDirectory,
    on_progress: OnProgress | None = None,
    on_notice: Say | None = None,
) -> Manifest:
    """Carry out a plan; returns the engine's manifest. Raises as `build`."""
    check_can_run(planned)
    planned.target.check_machine(planned.model, planned.parts, planned.tower.model if planned.tower else None)
    try:
        return _Build(planned, directory, on_progress, on_notice or (lambda _: None)).run()
    except OSError as error:
        outcome = KEPT if directory.begun else "nothing was built"
        raise StorageError(f"{error.filename or directory.path}: {error.strerror or error}; {outcome}") from error


class _Build:
    """One build, from its plan on."""

    def __init__(
        self, planned: BuildPlan, directory: OutputDirectory, on_progress: OnProgress | None, on_notice: Say
    ) -> None:
        self.planned, self.directory = planned, directory
        self.on_progress, self.on_notice = on_progress, on_notice
        self.files = planned.files
        self.written = 0

    def run(self) -> Manifest:
        """Everything that reads or writes weights."""
        planned, directory = self.planned, self.directory
        for line in planned.inputs.about_text:
            self.on_notice(line)
        with planned.sources.followed():
            old = previous_engine(directory.path)
            if old and self._is_up_to_date(old):
                directory.clear_leftover()
                self.on_notice(f"{directory.path.name} is up to date; every file was checked, none was written")
                return old
            with directory.writing() as partial:
                weights = self._taken_over(partial) or self._emit(partial)
                records = weights | self._write_graph(partial)
                manifest = engine_manifest(planned, dict(sorted(records.items())), planned.sources.records())
                planned.sources.check_in_place()
                directory.finish(manifest.to_json())
        return manifest

    def _is_up_to_date(self, old: Manifest) -> bool:
        """Whether the existing engine is what this build would write."""
        planned = self.planned
        if not may_have_weights(old, self._draft(), self.files):
            return False
        copied = {name: file.record() for name, file in planned.inputs.companions.items()}
        draft = engine_manifest(planned, {}, planned.sources.records())
        if not is_up_to_date(self.directory.path, old, draft, copied):
            return False
        planned.sources.check_in_place()
        return True

    def _taken_over(self, partial: Path) -> dict[str, FileRecord] | None:
        """Link the data files of the existing engine into `partial`, and return their records; None if they are not
        what this build would write. The lock on `partial` keeps other builds from replacing the engine meanwhile."""
        engine = self.directory.path
        old = previous_engine(engine)
        if old is None or self._graph_holds_codes() or not may_have_weights(old, self._draft(), self.files):
            return None
        draft = engine_manifest(self.planned, {}, self.planned.sources.records())
        weights = reusable_weights(engine, old, draft, self.planned.graphs)
        if weights is None:
            return None
        self.on_notice("the weights have not changed; they are taken over from the engine that is there")
        self.directory.clear()
        take_over(engine, partial, [*weights, *self._reports()])
        return weights

    def _draft(self) -> Manifest:
        """The manifest that the engine will have, without files and sources."""
        return engine_manifest(self.planned, {}, {})

    def _write_graph(self, partial: Path) -> dict[str, FileRecord]:
        """Write the graph, with measured scales, and every other file but the weights; returns their records."""
        planned = self.planned
        if scales := measure_scales(planned, partial, self.on_notice):
            assert planned.graph.portable is planned.model, "a portable graph would keep scales of one"
            scales(planned.model)
            if planned.dump:
                planned.dump(len(planned.passes), planned.passes[-1], planned.model)
        portable = write_portable(planned.graph, partial)
        names = [emit_graph(graph.model, graph.files, partial, graph.name) for graph in planned.graphs]
        checking = write_check(planned, self._draft(), partial)
        finishing = planned.target.finish(self._unfinished(partial, *names))
        copied = {name: file.copy_to(partial / name) for name, file in planned.inputs.companions.items()}
        written = (*names, *portable, *checking, *finishing, *self._reports())
        return copied | {name: file_record(partial / name) for name in written}

    def _unfinished(self, partial: Path, graph: str, tower: str | None = None) -> UnfinishedEngine:
        planned, options = self.planned, self.planned.options
        return UnfinishedEngine(
            directory=partial,
            graph=graph,
            model=planned.model,
            config=planned.config,
            kv_layout=options.kv_layout,
            max_context=planned.inputs.max_context,
            prefill_tokens=planned.prefill_tokens,
            profiles=planned.profiles,
            activations=options.activations,
            parts=planned.parts,
            compute_capabilities=options.compute_capabilities,
            on_notice=self.on_notice,
            tower=tower,
            image_token=planned.inputs.vision.image_token_id if planned.inputs.vision else None,
        )

    def _emit(self, partial: Path) -> dict[str, FileRecord]:
        self.directory.check_room(self._room())
        options, head = self.planned.options, _journal_head(self.planned)
        with Journal(partial, head, self.planned.sources, _sources_of_units(self.planned)) as journal:
            if journal.changed:
                changed = _listed(journal.changed)
                self.on_notice(f"starting afresh: {changed} changed since the build that was cut short")
            written = [file.name for file in self.files] if journal.entries else []
            kept = [CALIBRATION] if self.planned.graph.calibration else []
            self.directory.clear(keep=[*written, *kept])
            journal.start()
            self._calibrate(partial, head)
            return emit_data(
                self.files, partial, options.workers, options.weights_budget, journal, self._resumed, self._advance,
                self.planned.sources.given_up,
            )  # fmt: skip

    def _calibrate(self, partial: Path, head: dict[str, str]) -> None:
        """Find the codes of the weights that are calibrated, and write the report."""
        plan = self.planned.graph.calibration
        if plan is None:
            return
        from l4export.reference.streamed_model import StreamedReference

        head = {name: head[name] for name in ("l4export", "checkpoint", "calibration")}
        reference = StreamedReference(self.planned.inputs.checkpoint, self.planned.options.layers)
        report = calibrate(plan, reference, head, self.planned.sources, self.on_notice)
        (partial / CALIBRATION_REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    def _graph_holds_codes(self) -> bool:
        """Whether the graph itself holds calibrated tensors, because they are small. It cannot be made without them."""
        tensors = [value.const_value for value in self.planned.model.graph.initializers.values()]
        return any(_is_calibrated(tensor) and tensor.nbytes <= INLINE_BYTES for tensor in tensors if tensor)

    def _reports(self) -> list[str]:
        return [CALIBRATION_REPORT] if self.planned.graph.calibration else []

    def _room(self) -> int:
        """Bytes that a build writes: the data files, and what a calibration keeps until they are complete."""
        plan, size = self.planned.graph.calibration, sum(file.size for file in self.files)
        if plan is not None:
            size += plan.nbytes + 2 * 2 * 4 * plan.text.tokens * self.planned.config.hidden_size
        if self.planned.parts:
            size *= 2  # engines hold the weights again
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


def _is_calibrated(tensor: ir.TensorProtocol) -> bool:
    """Whether it is of a `CalibratedWeight`, alone or packed with others, or a calibrated router."""
    if isinstance(tensor, Cast):
        return isinstance(tensor.part, StoredPart)
    evaluation = tensor.evaluation if isinstance(tensor, Output) else None
    if isinstance(evaluation, Stack):
        return any(map(_is_calibrated, evaluation.parts))
    if isinstance(evaluation, PackedCodes):
        return _is_calibrated(evaluation.plain)
    return isinstance(evaluation, CalibratedWeight)


def _journal_head(planned: BuildPlan) -> dict[str, str]:
    """Everything that decides the bytes of the data files, except the contents of weights, whose digests are in the
    journal. Options of the decoder count only through the plan."""
    calibration, policy = planned.graph.calibration, planned.options.policy
    options = {
        "target": planned.options.target,
        "dtype": planned.options.float_dtype,
        "layers": planned.options.layers,
        "vision": planned.options.tower_dtype if planned.tower else None,
        "policy": policy and policy.to_dict(),
    }
    return {
        "l4export": generator(),
        "checkpoint": planned.inputs.checkpoint.header_digest(),
        "options": json.dumps(options),
        "plan": plan_digest(planned.files),
        **({"calibration": calibration.digest()} if calibration else {}),
    }


def _sources_of_units(planned: BuildPlan) -> dict[int, Collection[str]]:
    """The names of the files that each unit is made from. config.json is covered by the journal's head."""
    everything = frozenset(planned.sources.names)
    found: dict[int, Collection[str]] = {}  # by evaluation: many units have one in common
    sources: dict[int, Collection[str]] = {}
    for unit in units(planned.files):
        key = id(unit.evaluation.outputs[0])
        if key not in found:
            found[key] = _files_read(unit.evaluation.outputs[0], everything)
        sources[unit.number] = found[key]
    return sources


def _files_read(recipe: Recipe, everything: Collection[str]) -> Collection[str]:
    """The names of the checkpoint's files that a tensor is made from: all of them if it was calibrated."""
    names = set[str]()
    for leaf in leaves(recipe):
        if isinstance(leaf, Source) and isinstance(leaf.data, StoredWeight):
            names.update(part.file_name for part in leaf.data.parts)
        elif not isinstance(leaf, Constant):
            return everything
    return names


def _listed(changed: list[str]) -> str:
    """The causes, as text. A plan differs only because something else does."""
    causes = [name for name in changed if name != "plan"] or changed
    return " and ".join(name if name == "l4export" else f"the {name}" for name in causes)
