"""The journal's lines: what counts, what does not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from l4export.storage.journal import JOURNAL, Journal, has_progress

HEAD = {"l4export": "1", "checkpoint": "aa", "options": "dtype fp32"}


def written(directory: Path, *units: int) -> Path:
    with Journal(directory, HEAD) as journal:
        journal.start()
        for unit in units:
            journal.add(unit, (unit, 0xFFFFFFFF))
    return directory / JOURNAL


def test_the_format(tmp_path: Path) -> None:
    head, *lines = written(tmp_path, 0, 12).read_text().splitlines()
    assert json.loads(head) == HEAD
    assert lines == ["0 00000000 ffffffff", "12 0000000c ffffffff"]


def test_what_was_noted_is_found_again(tmp_path: Path) -> None:
    written(tmp_path, 0, 12)
    with Journal(tmp_path, HEAD) as journal:
        assert journal.entries == {0: (0, 0xFFFFFFFF), 12: (12, 0xFFFFFFFF)} and not journal.changed
        journal.start()
        journal.add(3, (3,))
    with Journal(tmp_path, HEAD) as journal:
        assert sorted(journal.entries) == [0, 3, 12]


def test_a_new_journal_has_no_entries(tmp_path: Path) -> None:
    with Journal(tmp_path, HEAD) as journal:
        assert not journal.entries and not journal.changed
    assert not (tmp_path / JOURNAL).exists() and not has_progress(tmp_path)


def test_a_journal_of_another_build_is_not_gone_on_with(tmp_path: Path) -> None:
    path = written(tmp_path, 0, 12)
    with Journal(tmp_path, HEAD | {"options": "dtype fp16", "l4export": "2"}) as journal:
        assert not journal.entries and journal.changed == ["l4export", "options"]
        journal.start()
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("torn", [b"7", b"7 0000", b"7 00000007 ffff", b"7 00000007 ffffffff"])
def test_a_torn_line_does_not_count_and_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = written(tmp_path, 0, 12)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with Journal(tmp_path, HEAD) as journal:
        assert sorted(journal.entries) == [0, 12]
        journal.start()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", [b"\0" * 30, b"", b"7", b"x 00000000", b"-1 00000000", b"7 0000000G", "٣ 00000000".encode()]
)
def test_nothing_counts_from_a_damaged_line_on(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path, 0)
    path.write_bytes(path.read_bytes() + line + b"\n12 00000000\n")
    with Journal(tmp_path, HEAD) as journal:
        assert sorted(journal.entries) == [0]


@pytest.mark.parametrize("data", [b"", b"\n", b"{", b"[]\n0 00000000\n", b"\0\0\n0 00000000\n", b'"a"\n', b"\xff\n"])
def test_what_is_no_journal_is_written_anew(tmp_path: Path, data: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(data)
    assert not has_progress(tmp_path)
    with Journal(tmp_path, HEAD) as journal:
        assert not journal.entries
        journal.start()
    assert (tmp_path / JOURNAL).read_bytes() == json.dumps(HEAD).encode() + b"\n"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    written(tmp_path / "elsewhere", 1)
    (tmp_path / JOURNAL).symlink_to(tmp_path / "elsewhere" / JOURNAL)
    assert not has_progress(tmp_path)


def test_half_a_line_that_fits_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:9]))
    with Journal(tmp_path, HEAD) as journal, monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        journal.start()
        patch.undo()
    with Journal(tmp_path, HEAD) as journal:
        journal.start()
        journal.add(1, (2,))
    assert (tmp_path / JOURNAL).read_text().splitlines()[-1] == "1 00000002"


def test_progress_is_a_unit(tmp_path: Path) -> None:
    assert not has_progress(tmp_path)
    written(tmp_path)
    assert not has_progress(tmp_path)
    written(tmp_path, 5)
    assert has_progress(tmp_path)
