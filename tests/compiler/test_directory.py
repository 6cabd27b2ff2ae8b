"""An engine directory appears whole or not at all: refusals, failures, kills, full disks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from l4export.checkpoint.sample import write_sample
from l4export.compiler import directory as module
from l4export.compiler.build import KEPT, build
from l4export.compiler.directory import OutputDirectory
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import verify_files
from l4export.errors import InputError, StorageError
from l4export.storage.journal import begin_journal
from l4export.weights import emission
from workshop import hear_ctrl_c

FORCE = BuildOptions(force=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "scout"
    write_sample(path, "scout", "tiny", seed=0)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "other"
    write_sample(path, "scout", "tiny", seed=1)
    return path


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of an undisturbed build."""
    path = tmp_path_factory.mktemp("engines") / "e"
    build(checkpoint, path)
    return contents(path)


@pytest.fixture
def incomplete(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose config asks for a fifth layer, which has no tensors."""
    path = tmp_path / "incomplete"
    shutil.copytree(checkpoint, path)
    raw = json.loads((path / "config.json").read_text())
    raw |= {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]}
    (path / "config.json").write_text(json.dumps(raw))
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def begun(partial: Path) -> None:
    """The directory of a build that has not written anything yet."""
    partial.mkdir()
    begin_journal(partial, "l4export 0")


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory to build in."""
    path = tmp_path / "place"
    path.mkdir()
    return path


# What is refused before any work


def test_an_existing_engine_is_refused(checkpoint: Path, place: Path) -> None:
    build(checkpoint, place / "e")
    with pytest.raises(InputError, match="exists already; choose another directory or pass --force"):
        build(checkpoint, place / "e")


@pytest.mark.parametrize("kind", ["empty directory", "file", "dangling link"])
def test_whatever_exists_is_refused(checkpoint: Path, place: Path, kind: str) -> None:
    if kind == "empty directory":
        (place / "e").mkdir()
    elif kind == "file":
        (place / "e").touch()
    else:
        (place / "e").symlink_to("nowhere")
    with pytest.raises(InputError, match="exists already"):
        build(checkpoint, place / "e")
    assert left(place) == ["e"]


def test_force_replaces_an_engine(checkpoint: Path, other: Path, place: Path, expected: dict[str, bytes]) -> None:
    build(other, place / "e")
    build(checkpoint, place / "e", FORCE)
    assert contents(place / "e") == expected and left(place) == ["e"]


def test_force_builds_where_nothing_is(checkpoint: Path, place: Path, expected: dict[str, bytes]) -> None:
    build(checkpoint, place / "e", FORCE)
    assert contents(place / "e") == expected


def test_force_refuses_a_directory_that_is_no_engine(checkpoint: Path, place: Path) -> None:
    (place / "e").mkdir()
    (place / "e" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="exists already and is not an engine directory"):
        build(checkpoint, place / "e", FORCE)
    assert left(place / "e") == ["thesis.tex"]


def test_force_refuses_a_link_to_an_engine(checkpoint: Path, other: Path, place: Path) -> None:
    build(other, place / "real")
    before = contents(place / "real")
    (place / "e").symlink_to("real")
    with pytest.raises(InputError, match="exists already and is not an engine directory"):
        build(checkpoint, place / "e", FORCE)
    assert contents(place / "real") == before


def test_a_missing_parent_is_refused(checkpoint: Path, place: Path) -> None:
    with pytest.raises(StorageError, match="no such directory; create it first"):
        build(checkpoint, place / "missing" / "e")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_parent_is_refused(checkpoint: Path, place: Path) -> None:
    place.chmod(0o500)
    with pytest.raises(StorageError, match="not writable"):
        build(checkpoint, place / "e")


def test_a_second_build_of_the_same_place_is_refused(checkpoint: Path, place: Path) -> None:
    """The lock is held by another process, as it would be."""
    begun(place / ".e.partial")
    (place / ".e.partial" / "decoder.onnx").write_text("half of another build")
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(flush=True); "
    hold += "sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(place / ".e.partial")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        with pytest.raises(InputError, match="another build is writing it; wait for it to end"):
            build(checkpoint, place / "e")
        holder.stdin.close()
    assert left(place / ".e.partial") == ["decoder.onnx", "journal"]


def test_two_writers_exclude_each_other(place: Path) -> None:
    first, second = (OutputDirectory(place / "e", replace=False) for _ in "12")
    with first.writing(), pytest.raises(InputError, match="another build is writing it"), second.writing():
        pass


def test_what_a_killed_build_left_is_cleared(checkpoint: Path, place: Path, expected: dict[str, bytes]) -> None:
    begun(place / ".e.partial")
    (place / ".e.partial" / "decoder-00001-of-00009.data").write_bytes(b"?")
    (place / ".e.partial" / "decoder.onnx").write_bytes(b"?")
    build(checkpoint, place / "e")
    assert contents(place / "e") == expected and left(place) == ["e"]


def test_a_partial_directory_that_no_build_made_is_left_alone(checkpoint: Path, place: Path) -> None:
    (place / ".e.partial").mkdir()
    (place / ".e.partial" / "precious").write_text("kept")
    with pytest.raises(InputError, match="'precious' was not written by a build"):
        build(checkpoint, place / "e")
    assert left(place) == [".e.partial"] and left(place / ".e.partial") == ["precious"]


def test_a_link_in_the_place_of_the_partial_directory_is_not_followed(checkpoint: Path, place: Path) -> None:
    (place / "other").mkdir()
    (place / "other" / "precious").write_text("kept")
    (place / ".e.partial").symlink_to("other")
    with pytest.raises((InputError, StorageError)):
        build(checkpoint, place / "e")
    assert left(place / "other") == ["precious"]


def test_force_refuses_to_lose_a_file_that_is_no_part_of_the_engine(checkpoint: Path, place: Path) -> None:
    build(checkpoint, place / "e")
    (place / "e" / "NOTES").write_text("kept")
    with pytest.raises(InputError, match="'NOTES' is no part of the engine"):
        build(checkpoint, place / "e", FORCE)
    assert (place / "e" / "NOTES").read_text() == "kept"


@pytest.mark.parametrize("dump", ["e", "e/stages"])
def test_dumps_inside_the_engine_are_refused(checkpoint: Path, place: Path, dump: str) -> None:
    with pytest.raises(InputError, match="lies inside the engine"):
        build(checkpoint, place / "e", BuildOptions(dump_ir=place / dump))
    assert left(place) == []


def test_the_lock_is_released(checkpoint: Path, place: Path) -> None:
    build(checkpoint, place / "e")
    descriptor = os.open(place / "e", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


# Builds that fail


def test_a_checkpoint_that_does_not_fit_its_config_leaves_nothing(incomplete: Path, place: Path) -> None:
    with pytest.raises(InputError, match=r"layers\.4\..* is missing; config\.json and the weights do not match"):
        build(incomplete, place / "e")
    assert left(place) == []


def test_a_failed_replacement_leaves_the_old_engine(other: Path, incomplete: Path, place: Path) -> None:
    build(other, place / "e")
    before = contents(place / "e")
    with pytest.raises(InputError):
        build(incomplete, place / "e", FORCE)
    assert contents(place / "e") == before and left(place) == ["e"]


def fail_at_byte(monkeypatch: pytest.MonkeyPatch, error: BaseException, count: int = 200_000) -> None:
    """Let `count` bytes of weights be written, then fail."""
    written, pwrite = 0, os.pwrite

    def failing(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > count:
            raise error
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(emission.os, "pwrite", failing)


def assert_kept(place: Path, before: dict[str, bytes] | None = None) -> None:
    """There is no new engine, and what was written is there to go on with, but looks like none."""
    assert left(place) == [".e.partial"] if before is None else [".e.partial", "e"]
    assert before is None or contents(place / "e") == before
    assert "journal" in left(place / ".e.partial") and "manifest.json" not in left(place / ".e.partial")


@pytest.mark.parametrize("error", [RuntimeError("bug"), MemoryError(), KeyboardInterrupt()])
def test_an_exception_while_writing_leaves_no_engine(
    checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    fail_at_byte(monkeypatch, error)
    with pytest.raises(type(error)):
        build(checkpoint, place / "e")
    assert_kept(place)


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_exception_before_any_weight_is_written_leaves_nothing(
    checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    fail_at_byte(monkeypatch, error, 0)
    with pytest.raises((type(error), StorageError)) as raised:
        build(checkpoint, place / "e")
    assert left(place) == []
    assert not isinstance(error, OSError) or str(raised.value).endswith("nothing was built")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_device_error_while_writing_is_told(
    checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fail_at_byte(monkeypatch, OSError(number, os.strerror(number)))
    with pytest.raises(StorageError, match=f"/e: {os.strerror(number)}; {KEPT}"):
        build(checkpoint, place / "e")
    assert_kept(place)


def test_an_exception_while_replacing_leaves_the_old_engine(
    checkpoint: Path, other: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(other, place / "e")
    before = contents(place / "e")
    fail_at_byte(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StorageError):
        build(checkpoint, place / "e", FORCE)
    assert_kept(place, before)


def test_a_directory_that_appears_meanwhile_is_not_overwritten(checkpoint: Path, place: Path) -> None:
    def appear(_written: int, _total: int) -> None:
        (place / "e").mkdir(exist_ok=True)
        (place / "e" / "precious").touch()

    with pytest.raises(StorageError, match="Directory not empty"):
        build(checkpoint, place / "e", on_progress=appear)
    assert left(place / "e") == ["precious"]


def test_a_system_without_exchange_replaces_too(
    checkpoint: Path, other: Path, place: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(other, place / "e")
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: object())
    build(checkpoint, place / "e", FORCE)
    assert contents(place / "e") == expected and left(place) == ["e"]


def test_too_little_room_is_told_before_writing(checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"1,081,344 bytes are needed and 1,000 are free; make room"):
        build(checkpoint, place / "e")
    assert left(place) == []


def test_the_manifest_is_the_last_file(checkpoint: Path, place: Path) -> None:
    """Until everything else is on disk, nothing in the partial directory says that it is an engine."""
    directory = OutputDirectory(place / "e", replace=False)
    with directory.writing() as partial:
        (partial / "data").write_text("weights")
        assert left(partial) == ["data", "journal"]
        directory.finish("{}")
    assert contents(place / "e") == {"data": b"weights", "manifest.json": b"{}"}


def test_everything_is_on_disk_before_it_has_its_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    sync = module._sync

    def recording(path: Path) -> None:
        synced.append((path.name, (place / "e").exists()))
        sync(path)

    monkeypatch.setattr(module, "_sync", recording)
    directory = OutputDirectory(place / "e", replace=False)
    with directory.writing() as partial:
        (partial / "data").write_text("weights")
        directory.finish("{}")
    before = [("data", False), ("manifest.json.partial", False), (".e.partial", False)]
    assert synced == [*before, ("place", True)]


# Whole processes

_SLOW = """
import os, sys, time
def slow(function, seconds):
    def call(*arguments, **keywords):
        time.sleep(seconds)
        return function(*arguments, **keywords)
    return call
os.pwrite = slow(os.pwrite, {seconds})
os.fsync = slow(os.fsync, {seconds})
os.rename = slow(os.rename, {seconds})
"""
_DYING = """
import os, signal
steps = 0
def dying(function):
    def call(*arguments, **keywords):
        global steps
        steps += 1
        if steps == {step}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call
for name in ("fsync", "rename", "unlink", "rmdir"):
    setattr(os, name, dying(getattr(os, name)))
"""


def environment(directory: Path, sitecustomize: str) -> dict[str, str]:
    """Python runs `sitecustomize` before anything else."""
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(sitecustomize)
    path = os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def command(checkpoint: Path, engine: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "l4export", "build", str(checkpoint), "-o", str(engine), "--jobs", "1", *options]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def test_a_killed_build_leaves_no_engine(
    checkpoint: Path, place: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """Nine builds that would take about a second each are killed at moments spread over 0.7 seconds of it."""
    # about 50 weights are written, 20 ms each
    slow = environment(tmp_path / "site", _SLOW.format(seconds=0.02))
    rng = random.Random(0)
    for number in range(9):
        with subprocess.Popen(command(checkpoint, place / "e"), env=slow, stderr=subprocess.PIPE, text=True) as process:
            wait_for(place / ".e.partial" / "decoder-00001-of-00001.data", process)
            time.sleep(rng.uniform(0.08 * number, 0.08 * (number + 1)))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not (place / "e").exists() and not (place / ".e.partial" / "manifest.json").exists()
    build(checkpoint, place / "e")
    assert contents(place / "e") == expected and left(place) == ["e"]


def steps_of_finishing(checkpoint: Path, other: Path, place: Path, site: Path, force: bool) -> Iterator[int]:
    """Kill a build at its first, second, ... sync, rename or removal until one gets through."""
    options = ["--force"] if force else []
    for step in range(1, 30):
        shutil.rmtree(place)
        place.mkdir()
        if force:
            build(other, place / "e")
        dying = environment(site, _DYING.format(step=step))
        result = subprocess.run(command(checkpoint, place / "e", *options), env=dying, check=False, timeout=60)
        if result.returncode == 0:
            return
        assert result.returncode == -signal.SIGKILL
        yield step


@pytest.mark.slow
def test_a_build_killed_while_it_finishes_leaves_a_whole_engine_or_none(
    checkpoint: Path, other: Path, place: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    whole = []
    for _ in steps_of_finishing(checkpoint, other, place, tmp_path / "site", force=False):
        whole.append((place / "e").exists())
        if whole[-1]:
            assert contents(place / "e") == expected
    # files, manifest and directory are synced before the engine has its name, its parent after
    assert len(whole) >= 6 and not any(whole[:6]) and whole[-1]


@pytest.mark.slow
def test_a_replacement_killed_while_it_finishes_leaves_the_old_engine_or_the_new(
    checkpoint: Path, other: Path, place: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    replaced = []
    for _ in steps_of_finishing(checkpoint, other, place, tmp_path / "site", force=True):
        verify_files(place / "e")
        replaced.append(contents(place / "e") == expected)
    assert not replaced[0] and replaced[-1] and replaced == sorted(replaced)


def test_an_interrupted_build_says_so_and_can_go_on(
    checkpoint: Path, place: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    slow = environment(tmp_path / "site", _SLOW.format(seconds=0.05))
    words, how = command(checkpoint, place / "e"), {"stderr": subprocess.PIPE, "text": True, "preexec_fn": hear_ctrl_c}
    with subprocess.Popen(words, env=slow, **how) as process:
        wait_for(place / ".e.partial" / "journal", process)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    # the terminal's line, where ^C is shown, is ended with an empty one
    assert errors.strip().splitlines() == [f"l4export: interrupted; {KEPT}"]
    assert_kept(place)
    build(checkpoint, place / "e")
    assert contents(place / "e") == expected and left(place) == ["e"]


def assert_disk_failure(result: subprocess.CompletedProcess[str], place: Path, reason: str) -> None:
    assert result.returncode == 4, result.stderr
    assert len(result.stderr.splitlines()) == 1 and reason in result.stderr
    assert "manifest.json" not in left(place) and not (place / "e").exists()
    kept = (place / ".e.partial").exists()
    assert kept == (KEPT in result.stderr)
    assert not kept or "manifest.json" not in left(place / ".e.partial")


def test_a_file_that_may_not_grow_fails_in_one_line(checkpoint: Path, place: Path) -> None:
    """A limit on the size of files stands for a full disk: the kernel refuses the write itself."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    result = subprocess.run(
        command(checkpoint, place / "e"), capture_output=True, text=True, preexec_fn=limit, check=False, timeout=60
    )
    assert_disk_failure(result, place, os.strerror(errno.EFBIG))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; the test chooses its size by remounting it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if (
        os.geteuid() != 0
        or not shutil.which("mount")
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        pytest.param("256k", "bytes are needed and", id="less than the weights"),
        pytest.param("1080k", os.strerror(errno.ENOSPC), id="room for the weights, not for the graph"),
    ],
)
def test_a_full_disk_fails_in_one_line(checkpoint: Path, small_disk: Path, size: str, reason: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)
    result = subprocess.run(
        command(checkpoint, small_disk / "e"), capture_output=True, text=True, check=False, timeout=60
    )
    assert_disk_failure(result, small_disk, reason)


def test_two_builds_give_the_same_bytes(checkpoint: Path, place: Path, expected: dict[str, bytes]) -> None:
    build(checkpoint, place / "again", BuildOptions(jobs=7))
    assert contents(place / "again") == expected


def test_two_processes_give_the_same_bytes(checkpoint: Path, place: Path, expected: dict[str, bytes]) -> None:
    """Another hash seed orders sets and dictionaries of objects differently."""
    seeded = os.environ | {"PYTHONHASHSEED": "12345"}
    subprocess.run(command(checkpoint, place / "e"), env=seeded, check=True, capture_output=True, timeout=60)
    assert contents(place / "e") == expected


def test_an_engine_that_is_up_to_date_is_cleared_of_the_one_it_replaced(checkpoint: Path, place: Path) -> None:
    """A build that was killed after the exchange has left it there."""
    build(checkpoint, place / "e")
    shutil.copytree(place / "e", place / ".e.partial")
    build(checkpoint, place / "e", BuildOptions(force=True))
    assert left(place) == ["e"]
