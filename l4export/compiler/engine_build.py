"""Builds an engine from its plan: weights, graphs with measured scales, and whatever else the target wants."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from l4export.calibration.weight_codes import StoredPart
from l4export.compiler.check_graph import write_check
from l4export.compiler.directory import OutputDirectory
from l4export.compiler.manifest import engine_manifest
from l4export.compiler.measure import check_can_run, measure_scales
from l4export.compiler.plan import BuildPlan
from l4export.compiler.portable import write_portable
from l4export.compiler.reuse import is_up_to_date, may_have_weights, previous_engine, reusable_weights, take_over
from l4export.compiler.weights_writer import OnProgress, Say, WeightsWriter
from l4export.engine.manifest import Manifest
from l4export.storage.file_records import FileRecord, file_record
from l4export.targets import UnfinishedEngine
from l4export.weights.emission import emit_graph
from l4export.weights.evaluation import leaves
from l4export.weights.placement import INLINE_BYTES

__all__ = ["build_engine"]


def build_engine(
    planned: BuildPlan, directory: OutputDirectory, on_progress: OnProgress | None, on_notice: Say
) -> Manifest:
    """Carry out a plan; returns the engine's manifest. Arguments and errors are those of `build`."""
    check_can_run(planned)
    planned.target.check_machine(planned.model, planned.parts, planned.tower.model if planned.tower else None)
    return _Build(planned, directory, on_progress, on_notice).run()


class _Build:
    """One build, from its plan on."""

    def __init__(
        self, planned: BuildPlan, directory: OutputDirectory, on_progress: OnProgress | None, on_notice: Say
    ) -> None:
        self.planned, self.directory, self.on_notice = planned, directory, on_notice
        self.weights = WeightsWriter(planned, directory, on_progress, on_notice)

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
                weights = self._taken_over(partial) or self.weights.write(partial)
                records = weights | self._write_graph(partial)
                manifest = engine_manifest(planned, dict(sorted(records.items())), planned.sources.records())
                planned.sources.check_in_place()
                directory.finish(manifest.to_json())
        return manifest

    def _is_up_to_date(self, old: Manifest) -> bool:
        """Whether the existing engine is what this build would write."""
        planned = self.planned
        if not may_have_weights(old, self._draft(), planned.files):
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
        if old is None or self._graph_holds_codes() or not may_have_weights(old, self._draft(), self.planned.files):
            return None
        draft = engine_manifest(self.planned, {}, self.planned.sources.records())
        weights = reusable_weights(engine, old, draft, self.planned.graphs)
        if weights is None:
            return None
        self.on_notice("the weights have not changed; they are taken over from the engine that is there")
        self.directory.clear()
        take_over(engine, partial, [*weights, *self.weights.reports])
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
        written = (*names, *portable, *checking, *finishing, *self.weights.reports)
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

    def _graph_holds_codes(self) -> bool:
        """Whether the graph itself holds calibrated tensors, because they are small. It cannot be made without them."""
        tensors = [value.const_value for value in self.planned.model.graph.initializers.values()]
        return any(_is_calibrated(tensor) and tensor.nbytes <= INLINE_BYTES for tensor in tensors if tensor)


def _is_calibrated(tensor: ir.TensorProtocol) -> bool:
    """Whether a calibration finds it: the codes of a weight, alone or packed with others, or a router."""
    return any(isinstance(leaf, StoredPart) for leaf in leaves(tensor))
