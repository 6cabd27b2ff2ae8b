"""A file is opened once, and known by what its descriptor says."""

from __future__ import annotations

import os
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from l4export.errors import InputError, StorageError
from l4export.storage.file_records import file_record
from l4export.storage.opened_file import OpenedFile, SourceChanged


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(b"first" * 1_000_000)
    os.utime(path, ns=(1, 1))
    return path


def test_what_is_read_copied_and_recorded(path: Path, tmp_path: Path) -> None:
    file = OpenedFile(path)
    assert file.size == 5_000_000 and file.read() == path.read_bytes()
    assert file.record() == file.copy_to(tmp_path / "copy") == file_record(path) == file_record(tmp_path / "copy")
    file.check_in_place()


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    file = OpenedFile(tmp_path / "f")
    assert file.read() == b"" and file.record() == file_record(tmp_path / "f")


def other(path: Path, how: str) -> None:
    """Another file of the same size and modification time."""
    data = b"other" * 1_000_000
    match how:
        case "in place":
            path.write_bytes(data)
        case "renamed":
            path.with_name("new").write_bytes(data)
            path.with_name("new").replace(path)
        case "and back":
            kept = path.read_bytes()
            path.write_bytes(data)
            path.write_bytes(kept)
        case "removed":
            path.unlink()
            return
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("how", ["in place", "renamed", "and back", "removed"])
def test_a_change_is_noticed_though_size_and_time_are_the_same(path: Path, how: str) -> None:
    file = OpenedFile(path)
    other(path, how)
    for check in (file.check_open, file.check_in_place, file.read, file.record):
        with pytest.raises(SourceChanged, match="f: "):
            check()


def test_a_change_at_once_is_noticed(tmp_path: Path) -> None:
    """Within one tick of the clock that files are stamped with: opening waits until it is over."""
    for number in range(30):
        path = tmp_path / str(number)
        path.write_bytes(b"first")
        file = OpenedFile(path)
        with open(path, "r+b") as handle:
            handle.write(b"other")
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, file._stamp.mtime_ns))
        with pytest.raises(SourceChanged):
            file.check_open()


def test_a_file_that_moved_away_is_still_the_one_that_is_read(path: Path) -> None:
    """With its directory: the file itself does not change by that."""
    directory = path.parent / "d"
    directory.mkdir()
    file = OpenedFile(path.rename(directory / "f"))
    directory.rename(path.parent / "elsewhere")
    file.check_open()
    with pytest.raises(SourceChanged, match="was removed"):
        file.check_in_place()


def test_a_link_is_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    assert OpenedFile(tmp_path / "link").record() == file_record(path)


@pytest.mark.parametrize("kind", ["directory", "pipe", "missing", "dangling", "device"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f"
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="no such file" if kind in ("missing", "dangling") else "not a regular file"):
        OpenedFile(path)


def test_a_copy_overwrites_nothing(path: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"kept")
    with pytest.raises(FileExistsError):
        OpenedFile(path).copy_to(tmp_path / "target")


def test_reading_that_is_given_up(path: Path) -> None:
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(CancelledError):
        OpenedFile(path).record(given_up)


def test_the_descriptor_is_closed_with_the_object(path: Path) -> None:
    file = OpenedFile(path)
    descriptor = file.descriptor
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_reading_that_fails_is_named(tmp_path: Path) -> None:
    """A process's own memory looks like a regular file, and its first byte cannot be read."""
    (tmp_path / "x").symlink_to("/proc/self/mem")
    with pytest.raises(StorageError, match="x: Input/output error; copy the file again"):
        OpenedFile(tmp_path / "x").read()
