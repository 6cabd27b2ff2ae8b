"""Builds a checkpoint for other programs from its plan: shards, their index, config.json, and what is copied."""

from __future__ import annotations

from pathlib import Path

from l4export.compiler.checkpoint_plan import CheckpointPlan
from l4export.compiler.directory import OutputDirectory
from l4export.compiler.reuse import is_up_to_date
from l4export.compiler.weights_writer import OnProgress, Say, WeightsWriter
from l4export.engine.checkpoint_manifest import CheckpointManifest, is_written_checkpoint, load_checkpoint_manifest
from l4export.errors import InputError
from l4export.storage.file_records import FileRecord, file_record

__all__ = ["build_checkpoint"]


def build_checkpoint(
    planned: CheckpointPlan, directory: OutputDirectory, on_progress: OnProgress | None, on_notice: Say
) -> CheckpointManifest:
    """Carry out a plan; returns the checkpoint's manifest. Arguments and errors are those of `build`."""
    for line in planned.inputs.about_text:
        on_notice(line)
    weights = WeightsWriter(planned, directory, on_progress, on_notice)
    with planned.sources.followed():
        if old := _up_to_date(planned, directory.path):
            directory.clear_leftover()
            on_notice(f"{directory.path.name} is up to date; every file was checked, none was written")
            return old
        with directory.writing() as partial:
            records = weights.write(partial)
            records |= _others(planned, partial)
            records |= {name: file_record(partial / name) for name in weights.reports}
            manifest = planned.manifest(dict(sorted(records.items())), planned.sources.records())
            planned.sources.check_in_place()
            directory.finish(manifest.to_json())
    return manifest


def _up_to_date(planned: CheckpointPlan, path: Path) -> CheckpointManifest | None:
    """The manifest of the checkpoint that is there, if it is what this build would write."""
    try:
        old = load_checkpoint_manifest(path) if is_written_checkpoint(path) else None
    except InputError:
        return None
    if old is None or (old.options, old.generator) != ((draft := planned.manifest({}, {})).options, draft.generator):
        return None  # without reading the sources
    copied = {name: file.record() for name, file in planned.companions.items()}
    if not is_up_to_date(path, old, planned.manifest({}, planned.sources.records()), copied):
        return None
    planned.sources.check_in_place()
    return old


def _others(planned: CheckpointPlan, partial: Path) -> dict[str, FileRecord]:
    """Write everything but weights; returns the records."""
    records = {}
    for name, text in planned.written.texts.items():
        (partial / name).write_text(text, encoding="utf-8")
        records[name] = file_record(partial / name)
    for name, file in planned.companions.items():
        (partial / name).parent.mkdir(exist_ok=True)
        records[name] = file.copy_to(partial / name)
    return records
