"""What was read is what is recorded, checked and copied, whenever a file is replaced by one that looks the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from l4export.checkpoint import hf_checkpoint, sample
from l4export.checkpoint.sample import write_sample
from l4export.compiler import engine_build as compiler
from l4export.compiler import inputs
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine import companions
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError, StorageError
from l4export.runtimes.text.codec import TextCodec
from l4export.storage.file_records import file_record
from l4export.storage.opened_file import SourceChanged
from workshop import ROOT, copy_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_sample(tmp_path / "ck", "guard", "tiny", seed=0)
    (tmp_path / "ck" / "generation_config.json").write_text('{"eos_token_id": 1}')
    return tmp_path / "ck"


def replace(path: Path, data: bytes) -> None:
    """As every downloader does it, with size and time as they were."""
    status = path.stat()
    assert len(data) == status.st_size
    incoming = path.with_name("incoming")
    incoming.write_bytes(data)
    os.utime(incoming, ns=(status.st_atime_ns, status.st_mtime_ns))
    incoming.replace(path)


def once_after(monkeypatch: pytest.MonkeyPatch, place: object, name: str, what: Callable[[], None]) -> None:
    """Do something the first time that a function has returned."""
    original, left = getattr(place, name), [what]

    def then(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if left:
            left.pop()()
        return result

    monkeypatch.setattr(place, name, then)


@pytest.mark.parametrize("moment", ["_config", "_weight_map", "with_generation_config"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_a_file_that_is_replaced_while_the_checkpoint_is_opened(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, name: str
) -> None:
    """Either it was not open yet, and the engine is that of the new file as the manifest says, or it is refused."""
    write_sample(tmp_path / "other", "guard", "tiny", seed=1)
    path = checkpoint / name
    new = {
        "config.json": path.read_bytes().replace(b" ", b"\t"),
        "model.safetensors": (tmp_path / "other" / "model.safetensors").read_bytes(),
        "generation_config.json": b'{"eos_token_id": 2}',
    }[name]
    once_after(monkeypatch, hf_checkpoint, moment, lambda: replace(path, new))
    try:
        build(checkpoint, tmp_path / "e")
    except SourceChanged as error:
        assert name in str(error) and not (tmp_path / "e").exists()
    else:
        assert name == "model.safetensors" and moment != "with_generation_config"
        build(checkpoint, tmp_path / "again")
        names = os.listdir(tmp_path / "again")
        assert all((tmp_path / "e" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)
        assert load_manifest(tmp_path / "e").source[name] == file_record(path)


@pytest.mark.parametrize("moment", [(companions, "_is_json_object"), (inputs, "open_checkpoint"), (inputs, "_texts")])
def test_a_companion_that_is_replaced_after_it_was_checked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: tuple[object, str]
) -> None:
    once_after(monkeypatch, *moment, lambda: replace(checkpoint / "generation_config.json", b"no JSON, nineteen b"))
    with pytest.raises(InputError, match=r"generation_config\.json"):
        build(checkpoint, tmp_path / "e")
    assert sorted(os.listdir(tmp_path)) == ["ck"]


def test_a_companion_that_is_replaced_before_it_is_copied(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_after(
        monkeypatch,
        compiler,
        "emit_graph",
        lambda: replace(checkpoint / "generation_config.json", b'{"eos_token_id": 3}'),
    )
    with pytest.raises(SourceChanged, match=r"generation_config\.json"):
        build(checkpoint, tmp_path / "e")
    build(checkpoint, tmp_path / "e")
    assert (tmp_path / "e" / "generation_config.json").read_bytes() == b'{"eos_token_id": 3}'
    assert load_manifest(tmp_path / "e").model.eos_token_ids == (3,)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_tokenizer_that_is_replaced_when_it_is_used_for_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    checkpoint = copy_checkpoint(ROOT / "examples/kjv/model", tmp_path / "ck")
    path = checkpoint / "tokenizer.json"
    (tmp_path / "text.txt").write_text("In the beginning God created the heaven and the earth. " * 40)
    original = TextCodec.open

    def swapped(directory: str | Path) -> TextCodec | None:
        if moment == "before":
            replace(path, path.read_bytes().replace(b'"version"', b'"versiom"'))
        codec = original(directory)
        if moment == "after":
            replace(path, path.read_bytes().replace(b'"version"', b'"versiom"'))
        return codec

    monkeypatch.setattr(TextCodec, "open", swapped)
    options = BuildOptions(kv_dtype="int8", kv_calibrate=tmp_path / "text.txt", max_context=128, layers=(0, 1))
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        build(checkpoint, tmp_path / "e", options)
    assert not (tmp_path / "e").exists()


def test_a_source_that_is_replaced_between_the_plan_and_the_build(checkpoint: Path, tmp_path: Path) -> None:
    from l4export.compiler.build import run_build
    from l4export.compiler.directory import OutputDirectory

    planned = plan_build(checkpoint, BuildOptions())
    write_sample(tmp_path / "other", "guard", "tiny", seed=1)
    replace(checkpoint / "model.safetensors", (tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(SourceChanged, match=r"model\.safetensors"):
        run_build(planned, OutputDirectory(tmp_path / "e", replace=False))


def test_an_engine_is_not_called_up_to_date_when_a_source_was_replaced_meanwhile(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(checkpoint, tmp_path / "e")
    write_sample(tmp_path / "other", "guard", "tiny", seed=1)
    data = (tmp_path / "other" / "model.safetensors").read_bytes()
    once_after(monkeypatch, compiler, "is_up_to_date", lambda: replace(checkpoint / "model.safetensors", data))
    with pytest.raises(SourceChanged, match=r"model\.safetensors"):
        build(checkpoint, tmp_path / "e", BuildOptions(force=True))


def test_a_checkpoint_whose_directory_was_exchanged_is_named(checkpoint: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "other", "guard", "tiny", seed=1)

    def exchange(_written: int, _total: int) -> None:
        if (tmp_path / "other").exists():
            checkpoint.rename(tmp_path / "old")
            (tmp_path / "other").rename(checkpoint)

    with pytest.raises(SourceChanged, match=r"config\.json"):
        build(checkpoint, tmp_path / "e", on_progress=exchange)


def test_what_the_manifest_says_is_what_sha256sum_says(checkpoint: Path, tmp_path: Path) -> None:
    manifest = build(checkpoint, tmp_path / "e")
    assert manifest.source == {n: file_record(checkpoint / n) for n in ("config.json", "model.safetensors")}
    copied = manifest.files["generation_config.json"]
    assert (
        copied
        == file_record(checkpoint / "generation_config.json")
        == file_record(tmp_path / "e" / "generation_config.json")
    )


def test_work_is_kept_when_a_source_changes_only_in_its_metadata(checkpoint: Path, tmp_path: Path) -> None:
    """chmod, a hard link: the same bytes. Nobody can know that during the build, but the next one does."""
    linked: list[Path] = []

    def link(written: int, total: int) -> None:
        if not linked and written > total // 2:
            linked.append(tmp_path / "backup")
            os.link(checkpoint / "model.safetensors", linked[0])

    with pytest.raises(SourceChanged, match=r"model\.safetensors"):
        build(checkpoint, tmp_path / "e", on_progress=link)
    notices: list[str] = []
    build(checkpoint, tmp_path / "e", on_notice=notices.append)
    assert any("resuming" in line for line in notices)


def test_shards_are_proven_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the units of the shard that was replaced are written again."""
    monkeypatch.setattr(sample, "_SHARD_BYTES", 100_000)
    for name, seed in (("ck", 0), ("other", 1)):
        write_sample(tmp_path / name, "scout", "tiny", seed=seed)
    shards = sorted((tmp_path / "ck").glob("model-*.safetensors"))
    assert len(shards) > 3

    def interrupt(written: int, total: int) -> None:
        if written > 0.9 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "ck", tmp_path / "e", BuildOptions(jobs=1), on_progress=interrupt)
    replace(shards[1], (tmp_path / "other" / shards[1].name).read_bytes())
    steps: list[tuple[int, int]] = []
    build(tmp_path / "ck", tmp_path / "e", on_progress=lambda *step: steps.append(step))
    assert 0 < steps[0][0] < 0.9 * steps[0][1]
    build(tmp_path / "ck", tmp_path / "new")
    for file in (tmp_path / "new").iterdir():
        assert (tmp_path / "e" / file.name).read_bytes() == file.read_bytes()


def test_a_companion_that_cannot_be_read_is_found_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    """It looks like a regular file of no bytes; copied last, it left a build that was cut short."""
    (checkpoint / "LICENSE").symlink_to("/proc/self/mem")
    with pytest.raises(StorageError, match="LICENSE: Input/output error"):
        build(checkpoint, tmp_path / "e")
    assert not list(tmp_path.glob(".e*"))


def test_texts_that_are_no_regular_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "texts").mkdir()
    shutil.move(tmp_path / "pipe.txt", tmp_path / "texts" / "pipe.txt")
    for text in (tmp_path / "texts", tmp_path / "texts" / "pipe.txt"):
        with pytest.raises(InputError, match="not a regular file"):
            build(checkpoint, tmp_path / "e", BuildOptions(kv_dtype="int8", kv_calibrate=text))


def test_compiled_code_that_is_turned_off_is_told_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    words = [sys.executable, "-m", "l4export", "build", str(checkpoint), "-o", str(tmp_path / "e"), "--quant", "int8"]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    result = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 3 and "NUMBA_DISABLE_JIT is set" in result.stderr
    assert json.loads((checkpoint / "config.json").read_text()) and not (tmp_path / "e").exists()
