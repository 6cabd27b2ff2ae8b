"""Checkpoints for other programs are built as engines are: whole or not at all, resumed, replaced, verified."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cut_short import fail_after
from written_checkpoints import TARGET, bfloat16_sample, policy

from l4export import runtimes
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.checkpoint_manifest import CheckpointManifest, load_checkpoint_manifest, verify_checkpoint
from l4export.errors import CheckFailed, InputError
from l4export.quantization.policy import standard_policy
from l4export.weights import placement
from workshop import random_ids

OPTIONS: dict[str, Any] = {"target": TARGET, "policy": policy()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = bfloat16_sample(tmp_path_factory.mktemp("checkpoints") / "scout", "scout", vision=True)
    (path / "LICENSE").write_text("terms")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tools.jinja").write_text("{{ x }}")
    return path


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of an undisturbed build."""
    path = tmp_path_factory.mktemp("written") / "out"
    build(checkpoint, path, BuildOptions(**OPTIONS))
    return contents(path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.mkdir()
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def written(checkpoint: Path, path: Path, **options: Any) -> list[str]:
    """Build, and return the notices."""
    notices: list[str] = []
    build(checkpoint, path, BuildOptions(**{**OPTIONS, **options}), on_notice=notices.append)
    return [notice for notice in notices if "tokenizer" not in notice and "chat template" not in notice]


def cut_short(checkpoint: Path, path: Path, count: int, **options: Any) -> None:
    """A build that stops, as at Ctrl-C, when about `count` bytes of weights are written."""
    with pytest.MonkeyPatch.context() as patch:
        fail_after(patch, count, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            written(checkpoint, path, **options)
    assert not path.exists() and not (path.parent / f".{path.name}.partial" / "l4export" / "manifest.json").exists()


# The same bytes


def test_bytes_do_not_depend_on_jobs_or_the_budget(
    checkpoint: Path, place: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_UNIT_BYTES", 10_000)
    written(checkpoint, place / "a", jobs=7, memory_budget=10 << 20)
    written(checkpoint, place / "b", jobs=1, memory_budget=100_000)
    assert contents(place / "a") == contents(place / "b") == expected


def test_a_build_goes_on_where_it_was(
    checkpoint: Path, place: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_UNIT_BYTES", 10_000)
    for count in (60_000, 90_000):
        cut_short(checkpoint, place / "out", count, jobs=2)
    (notice,) = written(checkpoint, place / "out", jobs=3)
    assert notice.startswith("resuming: ")
    assert contents(place / "out") == expected and left(place) == ["out"]


def test_a_calibrated_build_goes_on_too(checkpoint: Path, place: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(random_ids((3, 60), seed=9).tolist()))
    written(checkpoint, place / "whole", calibrate=ids)
    cut_short(checkpoint, place / "out", 60_000, calibrate=ids)
    notices = written(checkpoint, place / "out", calibrate=ids)
    assert any("layers were already calibrated" in notice for notice in notices)
    assert contents(place / "out") == contents(place / "whole") and left(place) == ["out", "whole"]


@pytest.mark.slow
def test_killed_at_any_moment(checkpoint: Path, place: Path, tmp_path: Path) -> None:
    """kill -9: what is there afterwards is nothing or all, and the next build gives the same bytes."""
    command = [sys.executable, "-m", "l4export", "build", str(checkpoint), "-o", str(place / "out"),
               "--target", TARGET, "--quant", "int4", "--block-size", "32", "--force"]  # fmt: skip
    (alone := tmp_path / "alone").mkdir()
    written(checkpoint, alone / "out", policy=standard_policy("int4", 32, of_mlps_alone=True))
    expected = contents(alone / "out")
    for delay in (1.0, 1.5, 2.0, 2.5, 3.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (place / "out").exists():
            verify_checkpoint(place / "out")
    subprocess.run(command, check=True)
    assert left(place) == ["out"]
    shards = {name: data for name, data in contents(place / "out").items() if "manifest" not in name}
    assert shards == {name: data for name, data in expected.items() if "manifest" not in name}


def test_what_is_up_to_date_is_left_alone(checkpoint: Path, place: Path) -> None:
    written(checkpoint, place / "out")
    before = {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*")}
    assert written(checkpoint, place / "out", force=True) == [
        "out is up to date; every file was checked, none was written"
    ]
    assert before == {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*")}


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors", "additional_chat_templates/tools.jinja"])
def test_what_was_changed_is_seen(checkpoint: Path, place: Path, expected: dict[str, bytes], damaged: str) -> None:
    written(checkpoint, place / "out")
    data = bytearray((place / "out" / damaged).read_bytes())
    data[-2] ^= 1
    (place / "out" / damaged).write_bytes(data)
    with pytest.raises(CheckFailed, match=f"{damaged} has been changed"):
        verify_checkpoint(place / "out")
    written(checkpoint, place / "out", force=True)
    assert contents(place / "out") == expected


# What is there


def test_an_existing_checkpoint_is_replaced_only_when_asked(checkpoint: Path, place: Path) -> None:
    written(checkpoint, place / "out")
    with pytest.raises(InputError, match="exists already; choose another directory or pass --force"):
        written(checkpoint, place / "out")
    written(checkpoint, place / "out", force=True, policy=policy("int8"))
    quant = json.loads((place / "out" / "config.json").read_text())["quantization_config"]
    assert quant["config_groups"]["group_0"]["weights"]["num_bits"] == 8 and left(place) == ["out"]


def test_a_source_is_never_taken_for_a_written_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    mine = bfloat16_sample(tmp_path / "mine", "scout")
    before = contents(mine)
    with pytest.raises(InputError, match="exists already and is not a checkpoint that l4export wrote"):
        written(checkpoint, mine, force=True)
    assert contents(mine) == before


@pytest.mark.parametrize("name", ["notes.txt", "l4export/notes.txt", "model-00001-of-00002.safetensors", "folder/x"])
def test_what_others_put_there_is_not_lost(checkpoint: Path, place: Path, name: str) -> None:
    written(checkpoint, place / "out")
    (place / "out" / name).parent.mkdir(exist_ok=True)
    (place / "out" / name).write_text("years of work")
    with pytest.raises(InputError, match="is no part of the checkpoint and would be lost"):
        written(checkpoint, place / "out", force=True, policy=policy("int8"))
    assert (place / "out" / name).read_text() == "years of work"


def test_weights_that_were_trained_further_in_place_are_not_lost(checkpoint: Path, place: Path) -> None:
    written(checkpoint, place / "out")
    (place / "out" / "model.safetensors").write_bytes(b"a fine-tune")
    with pytest.raises(InputError, match=r"'model\.safetensors' is no part of the checkpoint"):
        written(checkpoint, place / "out", force=True)


def test_an_engine_and_a_checkpoint_do_not_replace_each_other(checkpoint: Path, place: Path) -> None:
    written(checkpoint, place / "out")
    with pytest.raises(InputError, match="exists already and is not an engine directory"):
        build(checkpoint, place / "out", BuildOptions(force=True))
    build(checkpoint, place / "e", BuildOptions(max_context=64))
    with pytest.raises(InputError, match="exists already and is not a checkpoint that l4export wrote"):
        written(checkpoint, place / "e", force=True)


def test_a_link_for_the_own_folder_is_not_followed(checkpoint: Path, place: Path, tmp_path: Path) -> None:
    written(checkpoint, place / "out")
    (place / "out" / "l4export").rename(tmp_path / "elsewhere")
    (place / "out" / "l4export").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="'l4export' is no part of the checkpoint"):
        written(checkpoint, place / "out", force=True, policy=policy("int8"))
    assert (tmp_path / "elsewhere" / "manifest.json").exists()


def test_an_unfinished_engine_gives_way(checkpoint: Path, place: Path, expected: dict[str, bytes]) -> None:
    """What is there of a build of the other kind is l4export's own, and is cleared."""
    done, pwrite = 0, os.pwrite

    def failing(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal done
        done += len(data)
        if done > 300_000:
            raise KeyboardInterrupt
        return pwrite(descriptor, data, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        with pytest.raises(KeyboardInterrupt):
            build(checkpoint, place / "out", BuildOptions())
    written(checkpoint, place / "out")
    assert contents(place / "out") == expected and left(place) == ["out"]


# What other commands say


def test_the_manifest_says_what_it_was_made_from(checkpoint: Path, place: Path) -> None:
    written(checkpoint, place / "out")
    manifest = load_checkpoint_manifest(place / "out")
    assert isinstance(manifest, CheckpointManifest) and manifest.target == TARGET and manifest.vision is not None
    assert set(manifest.source) == {"config.json", "model.safetensors"}
    assert manifest.options["weights"] == {"dtype": "bfloat16", "policy": policy().to_dict()}


def test_runtimes_say_what_runs_it(checkpoint: Path, place: Path) -> None:
    written(checkpoint, place / "out")
    with pytest.raises(InputError, match="is a checkpoint, which vLLM, SGLang and transformers run, not l4export"):
        runtimes.load(place / "out")


def test_the_commands(checkpoint: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return caught.value.code, *capsys.readouterr()

    command = ["build", checkpoint, "-o", place / "out", "--target", TARGET, "--quant", "int4"]
    code, out, _ = run(*command, "--dry-run")
    assert code == 0 and not left(place)
    assert "would hold 0.000 GB of weights (compressed-tensors, bfloat16, int4)" in out
    code, out, _ = run(*command)
    assert code == 0 and "(compressed-tensors, bfloat16, int4)" in out
    code, out, _ = run("verify", place / "out")
    assert code == 0 and "all as built" in out
    code, out, _ = run("inspect", place / "out", "--json")
    facts = json.loads(out)
    assert facts["kind"] == "checkpoint" and facts["stored_as"]["shared expert"] == [
        "INT4, groups of 64",
        "INT4, groups of 32",
    ]
    code, _, error = run("run", place / "out", "--prompt", "x")
    assert code == 2 and "vLLM" in error
    code, out, _ = run(*command, "--force", "--json")
    assert code == 0 and json.loads(out).keys() == {"engine", "files", "bytes", "seconds"}
    code, _, error = run(*command, "--force", "--kv-dtype", "int8")
    assert code == 2 and "--kv-dtype: --target compressed-tensors does not take it" in error


def test_it_is_a_checkpoint_itself(checkpoint: Path, place: Path) -> None:
    """An engine can be built from what was written, with the same codes' numbers."""
    written(checkpoint, place / "out")
    build(place / "out", place / "e", BuildOptions(max_context=64))
    assert runtimes.load(place / "e").generate([1, 2, 3], max_new_tokens=2)
