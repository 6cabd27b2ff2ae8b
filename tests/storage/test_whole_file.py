"""Small files appear whole or not at all, and nothing else is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from l4export.errors import InputError, StorageError
from l4export.storage.whole_file import check_replaceable, replace_file


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    replace_file(path, "mark é")
    path.chmod(0o640)
    with path.open(encoding="utf-8") as before:
        replace_file(path, "mark again")
        assert before.read() == "mark é"  # a reader has what it opened
    assert path.read_text() == "mark again" and path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


def test_permissions_are_those_that_any_program_would_give(tmp_path: Path) -> None:
    replace_file(tmp_path / "r", "")
    (tmp_path / "other").touch()
    assert (tmp_path / "r").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_links_lead_to_what_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    replace_file(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "text"


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r"
    replace_file(path, "first")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        replace_file(path, "second")
    assert path.read_text() == "first" and len(list(tmp_path.iterdir())) == 1


def test_only_what_has_the_mark_may_be_replaced(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "new", "mark")
    (tmp_path / "empty").touch()
    check_replaceable(tmp_path / "empty", "mark")
    (tmp_path / "ours").write_text("<!-- mark -->" + "x" * 9999)
    check_replaceable(tmp_path / "ours", "mark")
    (tmp_path / "manifest.json").write_text("x" * 300 + "mark")
    for path, error, words in (
        (tmp_path / "manifest.json", InputError, "would be lost"),
        (tmp_path, InputError, "is a directory"),
        (Path("/dev/null"), InputError, "no regular file"),
        (tmp_path / "none" / "r", StorageError, "no such directory"),
        (tmp_path / "ours" / "r", StorageError, "check the path"),
    ):
        with pytest.raises(error, match=words):
            check_replaceable(path, "mark")
