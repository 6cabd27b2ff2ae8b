"""The manifest of a written checkpoint: what is written is what is read, and what is wrong in it is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from l4export.checkpoint import read_config
from l4export.engine.checkpoint_manifest import (
    CHECKPOINT_MANIFEST,
    CheckpointManifest,
    is_written_checkpoint,
    load_checkpoint_manifest,
)
from l4export.errors import InputError
from l4export.storage.file_records import FileRecord
from workshop import Workshop

RECORD = FileRecord(5, "0" * 64)


@pytest.fixture
def written(workshop: Workshop, tmp_path: Path) -> CheckpointManifest:
    manifest = CheckpointManifest(
        generator="l4export 1",
        target="compressed-tensors",
        model=read_config(workshop.checkpoint("scout")),
        options={"weights": {"policy": {"rules": []}}},
        source={"model.safetensors": RECORD},
        files={"config.json": RECORD, "l4export/calibration.json": RECORD},
    )
    (tmp_path / CHECKPOINT_MANIFEST).parent.mkdir()
    (tmp_path / CHECKPOINT_MANIFEST).write_text(manifest.to_json())
    return manifest


def edit(path: Path, **changes: Any) -> None:
    file = path / CHECKPOINT_MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_is_written_is_read(written: CheckpointManifest, tmp_path: Path) -> None:
    assert is_written_checkpoint(tmp_path)
    assert load_checkpoint_manifest(tmp_path) == written


def test_other_directories_have_none(tmp_path: Path) -> None:
    assert not is_written_checkpoint(tmp_path)
    with pytest.raises(InputError, match="not a checkpoint that l4export wrote"):
        load_checkpoint_manifest(tmp_path)


RECORD_JSON = {"bytes": 5, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "l4export-engine"}, "not the manifest of a checkpoint"),
        ({"format_version": 2}, "format_version is 2"),
        ({"format_version": True}, "format_version is True"),
        ({"generator": 5}, "generator is 5"),
        ({"model": {}}, "model: .* is missing"),
        ({"options": {}}, "options.weights is missing"),
        ({"files": []}, "files is"),
        ({"files": {"config.json": {"bytes": -1, "sha256": "0" * 64}}}, "files.config.json.bytes is -1"),
        ({"files": {"../config.json": RECORD_JSON}}, "leads outside"),
        ({"files": {"a/b/c": RECORD_JSON}}, "leads outside"),
        ({"files": {"/etc/passwd": RECORD_JSON}}, "leads outside"),
        ({"source": {"a/b": RECORD_JSON}}, "leads outside"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    written: CheckpointManifest, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    edit(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as refused:
        load_checkpoint_manifest(tmp_path)
    assert "checkpoint" in str(refused.value)
