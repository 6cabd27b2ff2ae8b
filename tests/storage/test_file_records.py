from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import pytest

from l4export.storage.file_records import FileRecord, file_record, read_records
from workshop import hear_ctrl_c

MINUTES_OF_READING = 400 << 30
"""A file of holes: no room on the disk, some four minutes for SHA-256 at 1.5 GB/s."""

AT_ONCE = 20
"""Seconds: far more than a piece takes on a busy machine, far less than the whole."""


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 3])
def test_size_and_sha256(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    assert file_record(tmp_path / "f") == FileRecord(size, hashlib.sha256(data).hexdigest())


def test_the_records_of_all_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"f{i}" for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * i)
    assert read_records(reads(paths), 2) == {path.name: file_record(path) for path in paths}


def test_an_error_ends_the_reading_of_the_others(tmp_path: Path) -> None:
    holes(tmp_path / "there", MINUTES_OF_READING)
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        read_records(reads([tmp_path / "missing", tmp_path / "there"]))
    assert time.monotonic() - began < AT_ONCE


def test_reading_that_is_given_up_ends_before_the_file_does(tmp_path: Path) -> None:
    holes(tmp_path / "f", MINUTES_OF_READING)
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(CancelledError):
        file_record(tmp_path / "f", given_up)


@pytest.mark.parametrize("what", ["build", "verify"])
def test_ctrl_c_does_not_wait_for_files_that_are_being_read(tmp_path: Path, what: str) -> None:
    """A sparse full-size checkpoint: its digests take minutes. For `verify` its engine is made up of holes as well."""
    full, engine = tmp_path / "full", tmp_path / "engine"
    run("sample", full, "--variant", "scout", "--size", "full")
    if what == "build":
        words = ["build", full, "-o", engine, "--quant", "int4", "--layers", "0:24"]
    else:
        run("sample", tmp_path / "tiny", "--variant", "scout")
        run("build", tmp_path / "tiny", "-o", engine)
        stretch(engine, MINUTES_OF_READING)
        words = ["verify", engine]
    command = [sys.executable, "-m", "l4export", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=hear_ctrl_c) as process:  # noqa: PLW1509 (it starts no thread)
        time.sleep(6)  # by then files are being read
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 130
    assert time.monotonic() - began < AT_ONCE


def reads(paths: list[Path]) -> dict[str, Callable[[threading.Event], FileRecord]]:
    return {path.name: partial(file_record, path) for path in paths}


def run(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "l4export", *map(str, words)], check=True, capture_output=True)


def holes(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


def stretch(engine: Path, size: int) -> None:
    """The engine's data file, and what the manifest says of its size."""
    name = "decoder-00001-of-00001.data"
    manifest = (engine / "manifest.json").read_text(encoding="utf-8")
    before = f'"{name}": {{\n   "bytes": {(engine / name).stat().st_size},'
    assert before in manifest
    (engine / "manifest.json").write_text(
        manifest.replace(before, f'"{name}": {{\n   "bytes": {size},'), encoding="utf-8"
    )
    holes(engine / name, size)
