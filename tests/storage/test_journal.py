"""The journal's lines: what counts, what does not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from l4export.errors import InputError
from l4export.storage.file_records import FileRecord
from l4export.storage.journal import JOURNAL, Journal, begin_journal, has_progress, is_journal
from l4export.storage.opened_file import SourceChanged

HEAD = {"l4export": "1", "checkpoint": "aa", "options": "dtype fp32"}


A, B = "a" * 64, "b" * 64
READS = {unit: ("x", "y") for unit in (0, 3, 5, 7, 12)} | {1: ("x",)}


@dataclass
class Sources:
    """Files whose first `read` bytes, up to 100, have one digest each."""

    digests: dict[str, str] = field(default_factory=lambda: {"x": A, "y": B})
    read: dict[str, int] = field(default_factory=lambda: {"x": 100, "y": 100})
    changed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.digests)

    def so_far(self, names: Iterable[str]) -> dict[str, FileRecord]:
        return {name: FileRecord(self.read[name], self.digests[name]) for name in names}

    def unchanged(self, noted: Mapping[str, FileRecord]) -> set[str]:
        return {name for name, record in noted.items() if self.digests.get(name) == record.sha256}

    def check_open(self) -> None:
        if self.changed:
            raise SourceChanged("x: changed")


def opened(directory: Path, head: dict[str, str] = HEAD, sources: Sources | None = None) -> Journal:
    return Journal(directory, head, sources or Sources(), READS)


def written(directory: Path, *units: int, sources: Sources | None = None) -> Path:
    with opened(directory, sources=sources) as journal:
        journal.start()
        for unit in units:
            journal.add(unit, (unit, 0xFFFFFFFF))
    return directory / JOURNAL


def test_the_format(tmp_path: Path) -> None:
    head, *lines = written(tmp_path, 0, 12).read_text().splitlines()
    assert json.loads(head) == HEAD
    assert lines == [f"source {A} 100 x", f"source {B} 100 y", "0 00000000 ffffffff", "12 0000000c ffffffff"]


def test_what_was_noted_is_found_again(tmp_path: Path) -> None:
    written(tmp_path, 0, 12)
    with opened(tmp_path) as journal:
        assert journal.entries == {0: (0, 0xFFFFFFFF), 12: (12, 0xFFFFFFFF)} and not journal.changed
        journal.start()
        journal.add(3, (3,))
    with opened(tmp_path) as journal:
        assert sorted(journal.entries) == [0, 3, 12]


def test_a_new_journal_has_no_entries(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        assert not journal.entries and not journal.changed
    assert not (tmp_path / JOURNAL).exists() and not has_progress(tmp_path)


def test_a_journal_of_another_build_is_not_gone_on_with(tmp_path: Path) -> None:
    path = written(tmp_path, 0, 12)
    with opened(tmp_path, HEAD | {"options": "dtype fp16", "l4export": "2"}) as journal:
        assert not journal.entries and journal.changed == ["l4export", "options"]
        journal.start()
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("torn", [b"7", b"7 0000", b"7 00000007 ffff", b"7 00000007 ffffffff"])
def test_a_torn_line_does_not_count_and_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = written(tmp_path, 0, 12)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with opened(tmp_path) as journal:
        assert sorted(journal.entries) == [0, 12]
        journal.start()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", [b"\0" * 30, b"", b"7", b"x 00000000", b"-1 00000000", b"7 0000000G", "٣ 00000000".encode()]
)
def test_nothing_counts_from_a_damaged_line_on(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path, 0)
    path.write_bytes(path.read_bytes() + line + b"\n12 00000000\n")
    with opened(tmp_path) as journal:
        assert sorted(journal.entries) == [0]


@pytest.mark.parametrize("data", [b"", b"\n", b"{", b"[]\n0 00000000\n", b"\0\0\n0 00000000\n", b'"a"\n', b"\xff\n"])
def test_what_is_no_journal_is_written_anew(tmp_path: Path, data: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(data)
    assert not has_progress(tmp_path)
    with opened(tmp_path) as journal:
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
    with opened(tmp_path) as journal, monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        journal.start()
        patch.undo()
    with opened(tmp_path) as journal:
        journal.start()
        journal.add(1, (2,))
    assert (tmp_path / JOURNAL).read_text().splitlines()[-1] == "1 00000002"


def test_progress_is_a_unit(tmp_path: Path) -> None:
    assert not has_progress(tmp_path)
    written(tmp_path)
    assert not has_progress(tmp_path)
    written(tmp_path, 5)
    assert has_progress(tmp_path)


# What a unit is believed for


def test_a_unit_of_a_source_with_another_digest_does_not_count(tmp_path: Path) -> None:
    path = written(tmp_path, 0, 1, 12)
    with opened(tmp_path, sources=Sources({"x": A, "y": A})) as journal:
        assert journal.entries == {1: (1, 0xFFFFFFFF)} and journal.changed == ["checkpoint"]
        journal.start()
    assert path.read_text().splitlines()[1:] == [f"source {A} 100 x", "1 00000001 ffffffff"]


def test_a_unit_of_which_the_journal_does_not_know_the_source_does_not_count(tmp_path: Path) -> None:
    """As in a journal that somebody edited; what did not count then does not count later."""
    path = written(tmp_path, 0, 1)
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.endswith("y\n")))
    with opened(tmp_path) as journal:
        assert sorted(journal.entries) == [1] and not journal.changed
        journal.start()
        journal.add(3, (3,))
    with opened(tmp_path) as journal:
        assert sorted(journal.entries) == [1, 3]


def test_how_far_its_sources_were_read_is_noted_before_a_unit_if_that_is_new(tmp_path: Path) -> None:
    sources = Sources()
    with opened(tmp_path, sources=sources) as journal:
        journal.start()
        for unit, x, y in ((0, 10, 0), (1, 10, 5), (3, 10, 5), (5, 100, 5)):
            sources.read = {"x": x, "y": y}
            journal.add(unit, (unit,))
    lines = [line.split() for line in (tmp_path / JOURNAL).read_text().splitlines()[1:]]
    read = [" ".join(line[3:1:-1]) if line[0] == "source" else line[0] for line in lines]
    assert read == ["x 10", "y 0", "0", "1", "y 5", "3", "x 100", "5"]


def test_the_last_that_was_noted_of_a_source_decides(tmp_path: Path) -> None:
    sources = Sources()
    with opened(tmp_path, sources=sources) as journal:
        journal.start()
        journal.add(0, (0,))
        sources.digests["x"] = B
        journal.add(3, (3,))
    with opened(tmp_path) as journal:
        assert not journal.entries and journal.changed == ["checkpoint"]
    with opened(tmp_path, sources=sources) as journal:
        assert sorted(journal.entries) == [0, 3]


def test_a_unit_of_a_source_that_changed_is_not_noted(tmp_path: Path) -> None:
    with opened(tmp_path, sources=Sources(changed=True)) as journal:
        journal.start()
        with pytest.raises(InputError):
            journal.add(0, (0,))
    assert not has_progress(tmp_path)


def test_units_that_the_build_does_not_have_do_not_count(tmp_path: Path) -> None:
    path = written(tmp_path, 0)
    path.write_bytes(path.read_bytes() + b"999 00000000\n")
    with opened(tmp_path) as journal:
        assert sorted(journal.entries) == [0]


def test_a_journal_that_has_begun_says_whose_the_directory_is(tmp_path: Path) -> None:
    begin_journal(tmp_path, "l4export 1")
    assert is_journal(tmp_path / JOURNAL) and not has_progress(tmp_path)
    with opened(tmp_path) as journal:
        assert not journal.entries and not journal.changed


@pytest.mark.parametrize("data", [b"", b"{}\n", b'{"name": "mine"}\n', b"dear diary\n", b"[" * 100_000 + b"\n"])
def test_other_files_of_that_name_are_no_journals(tmp_path: Path, data: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(data)
    assert not is_journal(tmp_path / JOURNAL)
