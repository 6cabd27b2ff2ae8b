"""Writes the weights of a planned product: calibrated where that was asked for, continued where it was begun."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from l4export.calibration.weight_codes import CalibrationPlan, calibrate
from l4export.checkpoint import StoredWeight
from l4export.compiler.directory import OutputDirectory
from l4export.compiler.inputs import BuildInputs
from l4export.compiler.options import BuildOptions
from l4export.compiler.ownership import CALIBRATION
from l4export.compiler.provenance import Sources, generator
from l4export.storage.file_records import FileRecord
from l4export.storage.journal import Journal
from l4export.weights.emission import emit_data
from l4export.weights.evaluation import leaves
from l4export.weights.placement import DataFile, plan_digest, units
from l4export.weights.recipes import Constant, Recipe, Source

__all__ = ["OnProgress", "Say", "WeightsPlan", "WeightsWriter"]

OnProgress = Callable[[int, int], None]
"""Receives (written, total) bytes of weights; the first call reports what an earlier build had written."""

Say = Callable[[str], None]
"""Receives notices for the user, one line at a time."""


class WeightsPlan(Protocol):
    """What a plan says of weights, whatever becomes of them."""

    @property
    def inputs(self) -> BuildInputs:
        """What is read."""

    @property
    def options(self) -> BuildOptions:
        """What was asked for."""

    @property
    def sources(self) -> Sources:
        """The checkpoint's files that it reads, opened."""

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Where the weights go."""

    @property
    def headers(self) -> Mapping[str, bytes]:
        """What files begin with, before their first weight, by their names."""

    @property
    def calibration(self) -> CalibrationPlan | None:
        """What finds the codes of weights; None where they are rounded to nearest."""

    @property
    def weight_options(self) -> Mapping[str, object]:
        """The options that decide the bytes of weights, but for adapters and texts."""

    @property
    def weight_copies(self) -> int:
        """How often weights are written, one way or another."""


class WeightsWriter:
    """Writes the weights of one build.

    Args:
        planned: What is written.
        directory: Where the product is built.
        on_progress: Receives how much has been written.
        on_notice: Receives notices for the user.
    """

    def __init__(
        self, planned: WeightsPlan, directory: OutputDirectory, on_progress: OnProgress | None, on_notice: Say
    ) -> None:
        self._planned, self._directory = planned, directory
        self._on_progress, self._on_notice = on_progress, on_notice
        self._written = 0

    @property
    def reports(self) -> list[str]:
        """The files that are written beside weights, by their paths in the product."""
        return [self._directory.product.report] if self._planned.calibration else []

    def write(self, partial: Path) -> dict[str, FileRecord]:
        """Write all files with weights into the directory of an unfinished product, and return their records.

        Raises:
            InputError: a weight that cannot be converted.
            SourceChanged: a source is no longer what it was when it was opened.
            StorageError: there is no room.
            OSError: writing failed.
        """
        self._directory.check_room(self._room())
        planned, head = self._planned, _journal_head(self._planned)
        with Journal(partial, head, planned.sources, _sources_of_units(planned)) as journal:
            if journal.changed:
                changed = _listed(journal.changed)
                self._on_notice(f"starting afresh: {changed} changed since the build that was cut short")
            written = [file.name for file in planned.files] if journal.entries else []
            kept = [CALIBRATION] if planned.calibration else []
            self._directory.clear(keep=[*written, *kept])
            journal.start()
            self._calibrate(partial, head)
            for name, header in planned.headers.items():
                _write_header(partial / name, header)
            return emit_data(
                planned.files, partial, planned.options.workers, planned.options.weights_budget, journal,
                self._resumed, self._advance, planned.sources.given_up,
            )  # fmt: skip

    def _calibrate(self, partial: Path, head: dict[str, str]) -> None:
        """Find the codes of the weights that are calibrated, and write the report."""
        plan = self._planned.calibration
        if plan is None:
            return
        from l4export.reference.streamed_model import StreamedReference

        head = {name: head[name] for name in ("l4export", "checkpoint", "calibration")}
        reference = StreamedReference(self._planned.inputs.checkpoint, self._planned.options.layers)
        report = calibrate(plan, reference, head, self._planned.sources, self._on_notice)
        path = partial / self._directory.product.report
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    def _room(self) -> int:
        """Bytes that a build writes: the data files, and what a calibration keeps until they are complete."""
        plan, size = self._planned.calibration, sum(file.size for file in self._planned.files)
        if plan is not None:
            size += plan.nbytes + 2 * 2 * 4 * plan.text.tokens * self._planned.inputs.config.hidden_size
        return size * self._planned.weight_copies

    def _resumed(self, count: int) -> None:
        if count:
            self._on_notice(f"resuming: {count / 1e9:.3f} of {self._total / 1e9:.3f} GB were already written")
        self._advance(count)

    def _advance(self, count: int) -> None:
        self._written += count
        if self._on_progress:
            self._on_progress(self._written, self._total)

    @property
    def _total(self) -> int:
        return sum(placed.recipe.nbytes for file in self._planned.files for placed in file.placements)


def _write_header(path: Path, header: bytes) -> None:
    """Write what a file begins with, and leave what an earlier build wrote behind it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "wb") as file:
        file.write(header)


def _journal_head(planned: WeightsPlan) -> dict[str, str]:
    """Everything that decides the bytes of the data files, except the contents of weights, whose digests are in the
    journal. Options of the decoder count only through the plan."""
    calibration = planned.calibration
    return {
        "l4export": generator(),
        "checkpoint": planned.inputs.checkpoint.header_digest(),
        "options": json.dumps(planned.weight_options),
        "plan": plan_digest(planned.files),
        **({"calibration": calibration.digest()} if calibration else {}),
    }


def _sources_of_units(planned: WeightsPlan) -> dict[int, Collection[str]]:
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
