"""A build that was cut short goes on; a rebuild takes over what has not changed; the bytes never differ."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from cut_short import fail_after
from safetensors.numpy import load_file, save_file
from tiny_tokenizers import byte_level

from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import KEPT, build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest, verify_files
from l4export.errors import InputError, StorageError
from l4export.weights import emission, placement
from l4export.weights.recipes import Recipe

DATA = "decoder-00001-of-00001.data"
_SLOW = """
import os, time
pwrite = os.pwrite
def slow(*arguments):
    time.sleep({seconds})
    return pwrite(*arguments)
os.pwrite = slow
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "scout"
    write_sample(path, "scout", "tiny", seed=0)
    return path


@pytest.fixture
def expected(checkpoint: Path, tmp_path: Path) -> dict[str, bytes]:
    """The bytes of an undisturbed build."""
    build(checkpoint, tmp_path / "undisturbed")
    return contents(tmp_path / "undisturbed")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.mkdir()
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def stamps(path: Path) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in path.iterdir()}


def cut_short(checkpoint: Path, engine: Path, options: BuildOptions | None = None, count: int = 300_000) -> int:
    """A build that stops, as at Ctrl-C, when about `count` bytes are written; returns the units that it noted."""
    with pytest.MonkeyPatch.context() as patch:
        fail_after(patch, count, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            build(checkpoint, engine, options)
    partial = engine.with_name(f".{engine.name}.partial")
    assert not engine.exists() and "manifest.json" not in left(partial)
    return units_noted(partial / "journal")


def units_noted(journal: Path) -> int:
    """How many units a journal lists; none if there is no journal."""
    lines = journal.read_bytes().split(b"\n")[1:-1] if journal.exists() else []
    return sum(not line.startswith(b"source") for line in lines)


class Watched:
    """A build with its notices, and the bytes it wrote after those that were there."""

    def __init__(self, checkpoint: Path, engine: Path, options: BuildOptions | None = None) -> None:
        self.notices: list[str] = []
        steps: list[tuple[int, int]] = []
        self.manifest = build(checkpoint, engine, options, lambda *step: steps.append(step), self.notices.append)
        self.resumed, self.written = (steps[0][0], steps[-1][0] - steps[0][0]) if steps else (0, 0)
        assert not steps or steps[-1][0] == steps[-1][1]


# Going on


def test_a_build_goes_on_where_it_was(checkpoint: Path, place: Path, expected: dict[str, bytes]) -> None:
    assert cut_short(checkpoint, place / "e", count=500_000) > 5
    again = Watched(checkpoint, place / "e")
    assert again.resumed > 300_000 and again.written < 900_000
    assert again.notices == [f"resuming: {again.resumed / 1e9:.3f} of 0.001 GB were already written"]
    assert contents(place / "e") == expected and left(place) == ["e"]


def test_it_goes_on_with_other_jobs_and_another_budget(
    checkpoint: Path, place: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_UNIT_BYTES", 10_000)
    for count, jobs, budget in ((100_000, 1, 1 << 20), (200_000, 7, 10 << 20), (300_000, 3, 100_000)):
        cut_short(checkpoint, place / "e", BuildOptions(jobs=jobs, memory_budget=budget), count)
    assert Watched(checkpoint, place / "e", BuildOptions(jobs=2)).resumed > 300_000
    assert contents(place / "e") == expected


@pytest.mark.slow
def test_ten_kills_in_a_row(checkpoint: Path, place: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    """kill -9 at ten random moments, then the same bytes, and no byte written twice but those of a unit in hand."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_SLOW.format(seconds=0.04))  # about 50 weights: two seconds
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "l4export", "build", str(checkpoint), "-o", str(place / "e"), "--jobs", "1"]
    journal = place / ".e.partial" / "journal"
    rng, noted = random.Random(0), 0
    for _ in range(10):
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            wait_for_growth(journal, process)
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert left(place) == [".e.partial"] and "manifest.json" not in left(journal.parent)
        assert units_noted(journal) >= noted, "a build that goes on forgets nothing"
        noted = units_noted(journal)
    again = Watched(checkpoint, place / "e")
    assert again.resumed > 0
    assert contents(place / "e") == expected and left(place) == ["e"]


def wait_for_growth(journal: Path, process: subprocess.Popen[str]) -> None:
    """Until the build has noted one more unit than it found."""
    before, deadline = units_noted(journal), time.monotonic() + 60
    while units_noted(journal) <= before:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def test_a_torn_journal(checkpoint: Path, place: Path, expected: dict[str, bytes]) -> None:
    cut_short(checkpoint, place / "e")
    journal = place / ".e.partial" / "journal"
    journal.write_bytes(journal.read_bytes()[:-4])
    assert Watched(checkpoint, place / "e").resumed > 0
    assert contents(place / "e") == expected


@pytest.mark.parametrize("damage", ["flip", "zeros", "truncate", "remove", "gap"])
def test_data_that_are_not_what_the_journal_says(
    checkpoint: Path, place: Path, expected: dict[str, bytes], damage: str
) -> None:
    """As after a power loss that kept the journal and lost the data."""
    cut_short(checkpoint, place / "e")
    path = place / ".e.partial" / DATA
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[70_000] ^= 1
    elif damage == "zeros":
        data[:200_000] = bytes(200_000)
    elif damage == "truncate":
        del data[150_000:]
    elif damage == "gap":
        gap = next(i for i in range(4095, len(data), 4096) if data[i - 100 : i + 1] == bytes(101))
        data[gap] = 1
    path.write_bytes(data)
    if damage == "remove":
        path.unlink()
    again = Watched(checkpoint, place / "e")
    assert bool(again.notices) == (damage != "remove")
    assert contents(place / "e") == expected


def test_what_else_lies_in_the_partial_directory_is_removed(
    checkpoint: Path, place: Path, expected: dict[str, bytes]
) -> None:
    cut_short(checkpoint, place / "e")
    partial = place / ".e.partial"
    for name in ("decoder.onnx", "manifest.json", "manifest.json.partial", "decoder-00009-of-00009.data"):
        (partial / name).write_text("old")
    build(checkpoint, place / "e")
    assert contents(place / "e") == expected


# Starting afresh


def test_a_changed_option_starts_afresh(checkpoint: Path, place: Path, tmp_path: Path) -> None:
    cut_short(checkpoint, place / "e")
    again = Watched(checkpoint, place / "e", BuildOptions(dtype="fp16"))
    assert (
        again.notices == ["starting afresh: the options changed since the build that was cut short"]
        and again.resumed == 0
    )
    build(checkpoint, tmp_path / "fp16", BuildOptions(dtype="fp16"))
    assert contents(place / "e") == contents(tmp_path / "fp16")


@pytest.mark.parametrize("change", ["the file's time", "a copy in its place"])
def test_a_source_with_the_same_bytes_is_the_same_source(
    checkpoint: Path, place: Path, expected: dict[str, bytes], change: str
) -> None:
    cut_short(checkpoint, place / "e")
    path = checkpoint / "model.safetensors"
    if change == "a copy in its place":
        path.write_bytes(path.rename(checkpoint / "old").read_bytes())
    os.utime(path, ns=(0, 0))
    assert Watched(checkpoint, place / "e").resumed > 0
    assert contents(place / "e") == expected


@pytest.mark.parametrize("how", ["renamed", "in place"])
def test_a_source_that_only_looks_the_same_starts_afresh(
    checkpoint: Path, place: Path, tmp_path: Path, expected: dict[str, bytes], how: str
) -> None:
    """Another checkpoint of the same shapes, sizes and times, as stores and archives make them that set all times."""
    cut_short(checkpoint, place / "e", BuildOptions(jobs=1))  # who does not come to the tables
    put_other(checkpoint, tmp_path, how)
    again = Watched(checkpoint, place / "e")
    assert again.notices == ["starting afresh: the checkpoint changed since the build that was cut short"]
    assert again.resumed == 0 and contents(place / "e") != expected
    build(checkpoint, tmp_path / "new")
    assert contents(place / "e") == contents(tmp_path / "new")


def test_units_of_a_build_that_never_knew_its_sources_do_not_count(
    checkpoint: Path, place: Path, expected: dict[str, bytes]
) -> None:
    """Nobody can say what the units were made of. One worker does not come to the tables, which are made of no file."""
    cut_short(checkpoint, place / "e", BuildOptions(jobs=1))
    journal = place / ".e.partial" / "journal"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if "model.safetensors" not in line))
    again = Watched(checkpoint, place / "e")
    assert again.resumed == 0 and not again.notices
    assert contents(place / "e") == expected


def test_a_rebuild_from_a_source_that_only_looks_the_same(checkpoint: Path, place: Path, tmp_path: Path) -> None:
    for name in ("e", "f"):
        build(checkpoint, place / name)
    put_other(checkpoint, tmp_path, "in place")
    for name, layout in (("e", "static"), ("f", "concat")):  # neither is up to date, nor are weights taken over
        options = BuildOptions(kv_layout=layout, force=True)
        assert not Watched(checkpoint, place / name, options).notices
        build(checkpoint, tmp_path / layout, options)
        assert contents(place / name) == contents(tmp_path / layout)


def put_other(checkpoint: Path, directory: Path, how: str) -> None:
    """Other weights in the place of a checkpoint's, with the same header, size and times."""
    write_sample(directory / "other", "scout", "tiny", seed=1)
    new, path = directory / "other" / "model.safetensors", checkpoint / "model.safetensors"
    status = path.stat()
    if how == "renamed":
        shutil.copyfile(new, checkpoint / "incoming")
        os.replace(checkpoint / "incoming", path)
    else:
        with open(path, "r+b") as file:
            file.write(new.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns


def test_another_version_starts_afresh(checkpoint: Path, place: Path, expected: dict[str, bytes]) -> None:
    cut_short(checkpoint, place / "e")
    journal = place / ".e.partial" / "journal"
    head, _, lines = journal.read_text().partition("\n")
    journal.write_text(json.dumps(json.loads(head) | {"l4export": "l4export 0.0.1"}) + "\n" + lines)
    assert Watched(checkpoint, place / "e").notices == [
        "starting afresh: l4export changed since the build that was cut short"
    ]
    assert contents(place / "e") == expected


# A source that changes


@pytest.mark.parametrize("change", ["touch", "grow", "replace", "remove", "config", "in place", "renamed"])
def test_a_source_that_changes_during_the_build_is_named(
    checkpoint: Path, place: Path, tmp_path: Path, change: str
) -> None:
    path = checkpoint / ("config.json" if change == "config" else "model.safetensors")

    def disturb(_written: int, _total: int) -> None:
        if change == "grow":
            with open(path, "ab") as handle:
                handle.write(b"more")
        elif change == "replace":
            shutil.copyfile(path, f"{path}.new")
            os.replace(f"{path}.new", path)
        elif change == "remove":
            path.unlink(missing_ok=True)
        elif change in ("in place", "renamed"):
            if not (tmp_path / "other").exists():
                put_other(checkpoint, tmp_path, change)
        else:
            os.utime(path, ns=(0, 0))

    with pytest.raises((InputError, StorageError), match=path.name):
        build(checkpoint, place / "e", on_progress=disturb)
    assert not (place / "e").exists()


# A disk that is full, then is not


def test_a_full_disk_then_room_again(
    checkpoint: Path, place: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_after(patch, 400_000, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(StorageError, match=f"No space left on device; {KEPT}"):
            build(checkpoint, place / "e")
    again = Watched(checkpoint, place / "e")
    assert again.resumed > 300_000
    assert contents(place / "e") == expected and left(place) == ["e"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills_half_way(checkpoint: Path, small_disk: Path, expected: dict[str, bytes]) -> None:
    """Someone else fills the disk while we write; then makes room."""

    def fill(_written: int, _total: int) -> None:
        with open(small_disk / "theirs", "ab", buffering=0) as handle:
            handle.write(bytes(1 << 20))

    with pytest.raises(StorageError, match=KEPT):
        build(checkpoint, small_disk / "e", on_progress=fill)
    (small_disk / "theirs").unlink()
    Watched(checkpoint, small_disk / "e")
    assert contents(small_disk / "e") == expected


# Rebuilding


def test_an_engine_that_is_up_to_date_is_left_alone(checkpoint: Path, place: Path) -> None:
    build(checkpoint, place / "e")
    before = stamps(place / "e")
    again = Watched(checkpoint, place / "e", BuildOptions(force=True, jobs=1, memory_budget=1 << 20))
    assert again.notices == ["e is up to date; every file was checked, none was written"]
    assert again.manifest == load_manifest(place / "e")
    assert stamps(place / "e") == before and left(place) == ["e"]


def test_another_graph_takes_over_the_weights(checkpoint: Path, place: Path, tmp_path: Path) -> None:
    options = BuildOptions(kv_layout="concat", force=True)
    build(checkpoint, place / "e")
    inode = (place / "e" / DATA).stat().st_ino
    again = Watched(checkpoint, place / "e", options)
    assert again.notices == ["the weights have not changed; they are taken over from the engine that is there"]
    assert (place / "e" / DATA).stat().st_ino == inode and (place / "e" / DATA).stat().st_nlink == 1
    build(checkpoint, tmp_path / "new", options)
    assert contents(place / "e") == contents(tmp_path / "new") and left(place) == ["e"]


def test_tables_that_depend_on_an_option_are_not_taken_over(
    checkpoint: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotations up to --max-context lie among the weights; so they would if they had the same size."""
    options = BuildOptions(max_context=100, force=True)
    build(checkpoint, place / "e")
    assert not Watched(checkpoint, place / "e", options).notices
    build(checkpoint, tmp_path / "new", options)
    assert contents(place / "e") == contents(tmp_path / "new")
    monkeypatch.setattr(Recipe, "tobytes", lambda _: b"other values")
    assert not Watched(checkpoint, place / "e", BuildOptions(kv_layout="concat", max_context=100, force=True)).notices


def test_where_links_cannot_be_the_weights_are_copied(
    checkpoint: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    options = BuildOptions(kv_layout="concat", force=True)
    build(checkpoint, place / "e")
    assert Watched(checkpoint, place / "e", options).written == 0
    build(checkpoint, tmp_path / "new", options)
    assert contents(place / "e") == contents(tmp_path / "new")


@pytest.mark.parametrize("change", ["weights", "dtype", "damage", "generator", "tokenizer"])
def test_nothing_is_reused_wrongly(checkpoint: Path, place: Path, tmp_path: Path, change: str) -> None:
    build(checkpoint, place / "e")
    options = BuildOptions(dtype="fp16" if change == "dtype" else "fp32", force=True)
    if change == "weights":  # another value, with the same size and time
        status = (checkpoint / "model.safetensors").stat()
        weights = load_file(checkpoint / "model.safetensors")
        weights["model.layers.1.self_attn.q_proj.weight"][3, 4] += 1
        save_file(weights, checkpoint / "model.safetensors")
        os.utime(checkpoint / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "damage":
        data = bytearray((place / "e" / DATA).read_bytes())
        data[70_000] ^= 1
        (place / "e" / DATA).write_bytes(data)
    elif change == "generator":
        path = place / "e" / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"generator": "l4export 0.0.1"}))
    elif change == "tokenizer":
        byte_level().save(str(checkpoint / "tokenizer.json"))
    again = Watched(checkpoint, place / "e", options)
    assert bool(again.notices) == (change == "tokenizer")  # whose engine's weights have not changed
    build(checkpoint, tmp_path / "new", options)
    assert contents(place / "e") == contents(tmp_path / "new") and left(place) == ["e"]
    verify_files(place / "e")


# Layers


def test_a_slice_of_the_layers(checkpoint: Path, tmp_path: Path) -> None:
    manifest = build(checkpoint, tmp_path / "e", BuildOptions(layers=(1, 4)))
    assert manifest.options["weights"]["layers"] == [1, 4] and manifest.model.num_hidden_layers == 3
    stored = load_file(checkpoint / "model.safetensors")
    found = {tensor.name: tensor for tensor in onnx.load(tmp_path / "e" / "decoder.onnx").graph.initializer}
    for layer in range(3):
        weight = onnx.numpy_helper.to_array(found[f"model.layers.{layer}.self_attn.o_proj.weight"])
        np.testing.assert_array_equal(weight, stored[f"model.layers.{layer + 1}.self_attn.o_proj.weight"])


def test_all_layers_are_the_whole_model(checkpoint: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    build(checkpoint, tmp_path / "e", BuildOptions(layers=(0, 4)))
    assert contents(tmp_path / "e")[DATA] == expected[DATA]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        *(("--layers", value, "not a range") for value in ("", "3", "1-2", ":2", "-1:2", "a:b", "1:2:3", "1: 2")),
        *(("--layers", value, "layers 0 to 3") for value in ("0:5", "4:4", "2:1", "9:10")),
        *(
            ("--memory-budget", value, "not a size")
            for value in ("", "lots", "-1", "1 PB", "1e9", "0x10", "1,5G", "٣G")
        ),
        *(("--memory-budget", value, "must be a positive") for value in ("0", "0GiB", "0.1")),
        ("--memory-budget", "1kB", "2 jobs need at least 1,536 bytes"),
    ],
)
def test_bad_options_are_refused(
    checkpoint: Path, place: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, words: str
) -> None:
    from l4export.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["build", str(checkpoint), "-o", str(place / "e"), "--jobs", "2", f"{option}={value}"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and words in error and error.count("\n") == 1, error
    assert left(place) == []


@pytest.mark.parametrize(
    ("text", "size"), [("512MB", 512_000_000), ("2GiB", 2 << 30), ("1.5G", 1_500_000_000), ("64 kib", 65536), ("7", 7)]
)
def test_sizes(text: str, size: int) -> None:
    from l4export.cli.sizes import parse_size

    assert parse_size("--memory-budget", text) == size


def test_the_least_budget_works(checkpoint: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="need at least") as raised:
        build(checkpoint, tmp_path / "e", BuildOptions(jobs=3, memory_budget=1))
    least = int(str(raised.value).split("at least ")[1].split(" bytes")[0].replace(",", ""))
    assert emission.block_bytes(3, least) * 9 <= least
    build(checkpoint, tmp_path / "e", BuildOptions(jobs=3, memory_budget=least))
    assert contents(tmp_path / "e") == expected
