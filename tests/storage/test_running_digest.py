"""A file's digest follows those who read it; a written file's digest those who write it."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest

from l4export.storage.file_records import FileRecord, file_record
from l4export.storage.opened_file import OpenedFile, SourceChanged
from l4export.storage.running_digest import RunningDigest
from l4export.storage.written_digest import WrittenDigest

SIZE = (5 << 20) + 77


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    return path


@pytest.fixture
def running(path: Path) -> RunningDigest:
    return RunningDigest(OpenedFile(path), threading.Event())


def beginning(path: Path, size: int) -> FileRecord:
    return FileRecord(size, hashlib.sha256(path.read_bytes()[:size]).hexdigest())


def test_it_goes_as_far_as_it_is_asked_and_no_further(running: RunningDigest, path: Path) -> None:
    assert running.so_far() == beginning(path, 0)
    for stop, reached in ((10, 10), (3, 10), ((1 << 20) + 10, (1 << 20) + 10), ((4 << 20) + 1, (4 << 20) + 1)):
        running.reach(stop)
        assert running.so_far() == beginning(path, reached)
    assert running.record(threading.Event()) == file_record(path) == running.so_far()


@pytest.mark.parametrize("size", [0, 10, 1 << 20, SIZE])
@pytest.mark.parametrize("before", [0, 10, 2 << 20, SIZE])
def test_the_digest_of_the_beginning(running: RunningDigest, path: Path, before: int, size: int) -> None:
    running.reach(before)
    assert running.beginning(size, threading.Event()) == beginning(path, size)
    assert running.so_far() == beginning(path, max(before, size))


def test_many_threads_hash_every_byte_once(running: RunningDigest, path: Path) -> None:
    stops = random.Random(1).sample(range(SIZE), 200)

    def reach(stop: int) -> int:
        running.reach(stop)
        return running.so_far().bytes

    with ThreadPoolExecutor(8) as pool:
        assert all(found >= stop for found, stop in zip(pool.map(reach, stops), stops, strict=True))
    assert running.so_far() == beginning(path, max(stops))


def test_a_file_that_became_shorter_is_told_of(running: RunningDigest, path: Path) -> None:
    os.truncate(path, 100)
    with pytest.raises(SourceChanged, match="f: changed"):
        running.reach(101)


def test_a_record_is_of_the_file_that_was_opened(running: RunningDigest, path: Path) -> None:
    running.reach(SIZE)
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChanged):
        running.record(threading.Event())


def test_it_ends_when_it_is_given_up(path: Path) -> None:
    given_up = threading.Event()
    running = RunningDigest(OpenedFile(path), given_up)
    running.reach(100)
    given_up.set()
    running.reach(100)
    with pytest.raises(CancelledError):
        running.reach(101)
    assert running.so_far() == beginning(path, 100)


PARTS = [(0, 1000), (4096, 3 << 20), (8 << 20, 77), ((8 << 20) + 77, 1 << 20)]
"""Start and size, with gaps."""


def written(path: Path, given_up: threading.Event) -> tuple[WrittenDigest, int]:
    size = sum(PARTS[-1])
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, size)
    return WrittenDigest(descriptor, size, (start for start, _ in reversed(PARTS)), given_up), descriptor


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_parts_that_are_written_in_any_order(tmp_path: Path, threads: int, seed: int) -> None:
    digest, descriptor = written(tmp_path / "w", threading.Event())
    rng = random.Random(seed)

    def write(part: tuple[int, int]) -> None:
        os.pwrite(descriptor, os.urandom(part[1]), part[0])
        digest.written(part[0])
        digest.catch_up()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, rng.sample(PARTS, len(PARTS))))
    os.close(descriptor)
    assert digest.record() == file_record(tmp_path / "w")


def test_nothing_is_hashed_before_it_is_written(tmp_path: Path) -> None:
    digest, descriptor = written(tmp_path / "w", threading.Event())
    digest.written(PARTS[1][0])
    digest.catch_up()
    with pytest.raises(AssertionError, match="hashed 0 of"):
        digest.record()
    digest.written(PARTS[0][0])
    digest.catch_up()
    with pytest.raises(AssertionError, match=f"hashed {PARTS[2][0]} of"):
        digest.record()
    os.close(descriptor)


def test_hashing_what_was_written_ends_when_it_is_given_up(tmp_path: Path) -> None:
    given_up = threading.Event()
    digest, descriptor = written(tmp_path / "w", given_up)
    digest.written(0)
    given_up.set()
    with pytest.raises(CancelledError):
        digest.catch_up()
    os.close(descriptor)
