"""`--force`, and a build that clears up, remove only what l4export wrote, and nothing that the build reads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from l4export.checkpoint.sample import write_sample
from l4export.cli import main
from l4export.compiler import directory as module
from l4export.compiler.build import build
from l4export.compiler.directory import OutputDirectory
from l4export.compiler.options import BuildOptions
from l4export.compiler.ownership import check_unfinished, lies_in
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError, StorageError
from l4export.storage.journal import begin_journal

FORCE = BuildOptions(force=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint `ck` and an engine `e` of it."""
    path = tmp_path_factory.mktemp("made")
    write_sample(path / "ck", "guard", "tiny", seed=0)
    build(path / "ck", path / "e")
    return path


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place", symlinks=True))


def everything(path: Path) -> dict[str, object]:
    """What lies below a directory, links not followed."""
    found: dict[str, object] = {}
    for at in sorted(path.rglob("*")):
        name = str(at.relative_to(path))
        if at.is_symlink():
            found[name] = ("link", os.readlink(at))
        elif at.is_file():
            found[name] = at.read_bytes()
        else:
            found[name] = "directory" if at.is_dir() else "other"
    return found


def refuses(place: Path, engine: Path, words: str, **options: Any) -> None:
    """The build is refused in one line, and nothing has changed."""
    before = everything(place)
    with pytest.raises(InputError, match=words) as caught:
        build(place / "ck", engine, BuildOptions(force=True, **options))
    assert "\n" not in str(caught.value)
    assert everything(place) == before


OURS = {"format": "l4export-engine", "format_version": 3, "files": {}}

FOREIGN_MANIFESTS = {
    "extension": '{"manifest_version": 3, "name": "x"}',
    "web app": '{"name": "pwa", "icons": []}',
    "not JSON": "{",
    "empty": "",
    "not an object": "[]",
    "no version": json.dumps({"format": "l4export-engine", "files": {}}),
    "version 0": json.dumps(OURS | {"format_version": 0}),
    "version true": json.dumps(OURS | {"format_version": True}),
    "no files": json.dumps({"format": "l4export-engine", "format_version": 3}),
    "another format": json.dumps(OURS | {"format": "l4export"}),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("manifest", FOREIGN_MANIFESTS.values(), ids=FOREIGN_MANIFESTS)
def test_a_directory_with_a_foreign_manifest_is_no_engine(place: Path, manifest: str) -> None:
    (place / "theirs").mkdir()
    (place / "theirs" / "manifest.json").write_text(manifest)
    (place / "theirs" / "thesis.txt").write_text("years of work")
    refuses(place, place / "theirs", "exists already and is not an engine directory")


@pytest.mark.parametrize("kind", ["directory", "link", "pipe", "large"])
def test_a_manifest_that_is_no_regular_file_proves_nothing(place: Path, kind: str) -> None:
    (place / "theirs").mkdir()
    manifest = place / "theirs" / "manifest.json"
    match kind:
        case "directory":
            manifest.mkdir()
        case "link":
            manifest.symlink_to(place / "e" / "manifest.json")
        case "pipe":
            os.mkfifo(manifest)
        case "large":
            manifest.write_bytes(b" " * ((64 << 20) + 1))
    refuses(place, place / "theirs", "exists already and is not an engine directory")


@pytest.mark.parametrize("kind", ["file", "directory", "empty directory", "link", "pipe", "damaged name", "listed"])
def test_what_is_beside_an_engine_is_not_lost(place: Path, kind: str) -> None:
    """Not even if the manifest lists it, unless it is what the manifest says."""
    theirs = place / "e" / "thesis"
    match kind:
        case "file":
            theirs.write_text("years of work")
        case "directory":
            theirs.mkdir()
            (theirs / "chapter").write_text("years of work")
        case "empty directory":
            theirs = place / "e" / "decoder.data"
            theirs.mkdir()
        case "link":
            theirs = place / "e" / "tokenizer.json"
            theirs.symlink_to(place / "ck" / "config.json")
        case "pipe":
            os.mkfifo(theirs)
        case "damaged name":
            theirs = place / "e" / "decoder-notes.txt"
            theirs.write_text("years of work")
        case "listed":
            theirs.write_text("years of work")
            edit_manifest(place / "e", lambda raw: raw["files"].update(thesis={"bytes": 1, "sha256": "0" * 64}))
    refuses(place, place / "e", f"{theirs.name!r} is no part of the engine and would be lost")


def edit_manifest(engine: Path, edit: Any) -> None:
    raw = json.loads((engine / "manifest.json").read_text())
    edit(raw)
    (engine / "manifest.json").write_text(json.dumps(raw))


@pytest.mark.parametrize("version", [1, 2, 3, 99])
def test_an_engine_of_another_version_is_replaced(place: Path, version: int) -> None:
    """Of a later one it is the manifest that says which files there are."""

    def edit(raw: dict[str, Any]) -> None:
        raw["format_version"] = version
        raw["files"]["vision.onnx"] = {"bytes": 5, "sha256": "0" * 64}

    edit_manifest(place / "e", edit)
    (place / "e" / "vision.onnx").write_bytes(b"12345")
    build(place / "ck", place / "e", FORCE)
    assert load_manifest(place / "e") and not (place / "e" / "vision.onnx").exists()


@pytest.mark.parametrize("damage", ["data", "missing", "fields"])
def test_a_damaged_engine_is_replaced(place: Path, damage: str) -> None:
    match damage:
        case "data":
            (place / "e" / "decoder.onnx").write_bytes(b"?")
        case "missing":
            (place / "e" / "decoder.onnx").unlink()
        case "fields":
            edit_manifest(place / "e", lambda raw: raw.pop("graphs"))
    expected = place / "new"
    build(place / "ck", expected)
    build(place / "ck", place / "e", FORCE)
    assert everything(place / "e") == everything(expected)


# Inputs


@pytest.mark.parametrize("engine", ["ck", "ck/../ck", "ck/.", "e/../ck", "link/ck"])
def test_the_checkpoint_is_never_replaced(place: Path, engine: str) -> None:
    (place / "link").symlink_to(".")
    (place / "ck" / "manifest.json").write_text(json.dumps(OURS))
    refuses(place, place / engine, "which the build reads, lies there")


@pytest.mark.parametrize("manifest", ['{"name": "pwa"}', json.dumps(OURS), None])
def test_the_checkpoint_on_the_command_line(
    place: Path, capsys: pytest.CaptureFixture[str], manifest: str | None
) -> None:
    if manifest:
        (place / "ck" / "manifest.json").write_text(manifest)
    before = everything(place)
    with pytest.raises(SystemExit) as caught:
        main(["build", str(place / "ck"), "-o", str(place / "ck"), "--force"])
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert everything(place) == before


def test_a_checkpoint_inside_the_engine_is_not_lost(place: Path) -> None:
    shutil.move(place / "ck", place / "e" / "ck")
    before = everything(place)
    with pytest.raises(InputError, match="which the build reads, lies there"):
        build(place / "e" / "ck", place / "e", FORCE)
    assert everything(place) == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_of_the_checkpoint_that_leads_into_the_engine_is_not_lost(place: Path, name: str) -> None:
    """As where a store links to the one copy that there is."""
    target = place / "e" / "decoder.onnx"
    (place / "ck" / name).unlink(missing_ok=True)
    (place / "ck" / name).symlink_to(target)
    refuses(place, place / "e", f"{name}, which the build reads, lies there")


def test_a_text_inside_the_engine_is_not_lost(place: Path) -> None:
    (place / "e" / "genai_config.json").write_text(" ".join(map(str, range(200))))
    (place / "texts").mkdir()
    (place / "texts" / "a.txt").symlink_to(place / "e" / "genai_config.json")
    for text in (place / "e" / "genai_config.json", place / "texts"):
        refuses(place, place / "e", "which the build reads, lies there", kv_dtype="int8", kv_calibrate=text)


def test_an_engine_inside_its_checkpoint_is_built_and_replaced(place: Path) -> None:
    before = everything(place / "ck")
    build(place / "ck", place / "ck" / "e")
    build(place / "ck", place / "ck" / "e", BuildOptions(force=True, dtype="fp16"))
    shutil.rmtree(place / "ck" / "e")
    assert everything(place / "ck") == before


def test_where_a_path_leads(tmp_path: Path) -> None:
    (tmp_path / "e" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to("e")
    (tmp_path / "other").mkdir()
    inside = ["e", "e/in", "e/in/new/file", "link", "link/in", "other/../e", "other/../link/in", "e/new"]
    outside = ["other", "e2", "e/..", "e/../other", "link/../other", "."]
    assert all(lies_in(tmp_path / path, tmp_path / "e") for path in inside)
    assert not any(lies_in(tmp_path / path, tmp_path / "e") for path in outside)
    assert lies_in(tmp_path / "new" / "x", tmp_path / "new"), "what does not exist yet"


# Files that are written beside the engine


def run(place: Path, capsys: pytest.CaptureFixture[str], *options: object) -> tuple[object, str]:
    with pytest.raises(SystemExit) as caught:
        main(["build", str(place / "ck"), "-o", str(place / "new"), "--quant", "int8", *map(str, options)])
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize("target", ["ck/config.json", "ck/model.safetensors", "e/manifest.json", "notes", "link"])
def test_write_policy_overwrites_nothing_but_policies(
    place: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    (place / "notes").write_text("years of work")
    (place / "link").symlink_to("ck/config.json")
    before = everything(place)
    code, error = run(place, capsys, "--write-policy", place / target, "--dry-run")
    assert code == 2 and error.count("\n") == 1 and "exists already, and would be lost" in error
    assert everything(place) == before


def test_write_policy_replaces_a_policy_but_not_the_one_that_is_read(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "p.toml"
    assert run(place, capsys, "--write-policy", path, "--dry-run")[0] == 0
    assert run(place, capsys, "--write-policy", path, "--dry-run")[0] == 0
    with pytest.raises(SystemExit) as caught:
        main([*map(str, ("build", place / "ck", "-o", place / "new", "--policy", path, "--write-policy", path))])
    assert caught.value.code == 2 and "would be lost" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--write-policy", "--dump-ir"])
@pytest.mark.parametrize("place_", ["new/x", ".new.partial/x", "ck/../new/x"])
def test_nothing_else_is_written_into_the_engine(
    place: Path, capsys: pytest.CaptureFixture[str], option: str, place_: str
) -> None:
    before = everything(place)
    code, error = run(place, capsys, option, place / place_, "--dry-run")
    assert code == 2 and "lies inside the engine" in error and error.count("\n") == 1
    assert everything(place) == before


def test_dumps_do_not_follow_links(place: Path) -> None:
    (place / "stages").mkdir()
    (place / "stages" / "00-reference.onnx").symlink_to(place / "ck" / "config.json")
    before = everything(place / "ck")
    build(place / "ck", place / "new", BuildOptions(dump_ir=place / "stages"))
    assert everything(place / "ck") == before
    assert not (place / "stages" / "00-reference.onnx").is_symlink()


# The place where an engine is built


@pytest.mark.parametrize("kind", ["file", "pipe", "link", "dangling link", "link to a build", "device"])
def test_what_is_in_the_way_of_a_build_is_named(place: Path, kind: str) -> None:
    partial = place / ".new.partial"
    match kind:
        case "file":
            partial.write_text("years of work")
        case "pipe":
            os.mkfifo(partial)
        case "link":
            partial.symlink_to("ck")
        case "dangling link":
            partial.symlink_to("nowhere")
        case "link to a build":
            (place / "theirs").mkdir()
            begin_journal(place / "theirs", "l4export 0")
            partial.symlink_to("theirs")
        case "device":
            partial.symlink_to("/dev/null")
    refuses(place, place / "new", r"\.new\.partial: (is in the way|.*which the build reads, lies there)")


OTHERS = {
    "a file of another name": {"journal": '{"l4export": "0"}\n', "precious": "x"},
    "names of ours without a journal": {"decoder.onnx": "x", "tokenizer.json": "x"},
    "a diary": {"journal": "dear diary\n"},
    "a journal of another program": {"journal": '{"name": "x"}\n'},
    "a foreign manifest": {"manifest.json": '{"name": "pwa"}'},
    "a directory of ours with others' files": {"journal": '{"l4export": "0"}\n', "calibration/thesis.txt": "x"},
    "another directory": {"journal": '{"l4export": "0"}\n', "decoder.d/thesis.txt": "x"},
    "a name that only begins like ours": {"journal": '{"l4export": "0"}\n', "decoder-notes.txt": "x"},
}


@pytest.mark.parametrize("files", OTHERS.values(), ids=OTHERS)
def test_a_directory_that_no_build_left_is_left_alone(place: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = place / ".new.partial" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    refuses(place, place / "new", "was not written by a build; move the directory away")


def test_links_in_a_build_that_was_cut_short_are_not_followed(place: Path) -> None:
    partial = place / ".new.partial"
    partial.mkdir()
    begin_journal(partial, "l4export 0")
    for link, target in (("decoder.onnx", "config.json"), ("calibration", ".")):
        (partial / link).symlink_to(place / "ck" / target)
        refuses(place, place / "new", f"{link!r} was not written by a build")
        (partial / link).unlink()


def test_files_with_a_second_name_are_not_written_to(place: Path) -> None:
    """As after a kill while the weights of an engine were taken over."""
    partial = place / ".new.partial"
    partial.mkdir()
    begin_journal(partial, "l4export 0")
    data = "decoder-00001-of-00001.data"
    os.link(place / "e" / data, partial / data)
    before = everything(place / "e")
    build(place / "ck", place / "new", BuildOptions(dtype="fp16"))
    assert everything(place / "e") == before


@pytest.mark.parametrize("files", [{}, {"journal.partial": ""}])
def test_a_directory_that_a_build_had_just_made_is_taken(place: Path, files: dict[str, str]) -> None:
    (place / ".new.partial").mkdir()
    for name, text in files.items():
        (place / ".new.partial" / name).write_text(text)
    build(place / "ck", place / "new")
    assert sorted(os.listdir(place)) == ["ck", "e", "new"]


def test_an_old_engine_that_was_being_removed_is_cleared(place: Path) -> None:
    """As after a kill behind the exchange. An engine that is up to date may stand beside it by then."""
    for name, options in (("new", None), ("e", FORCE)):
        partial = place / f".{name}.partial"
        shutil.copytree(place / "e", partial)
        (partial / "decoder.onnx").unlink()
        check_unfinished(partial)
        build(place / "ck", place / name, options)
    assert sorted(os.listdir(place)) == ["ck", "e", "new"]


# What comes while the build is under way


def test_a_file_that_appears_in_the_engine_meanwhile_is_not_lost(place: Path) -> None:
    def appear(_written: int, _total: int) -> None:
        (place / "e" / "thesis.txt").write_text("years of work")

    with pytest.raises(StorageError, match=r"thesis\.txt' is no part of the engine and would be lost"):
        build(place / "ck", place / "e", BuildOptions(force=True, dtype="fp16"), on_progress=appear)
    assert (place / "e" / "thesis.txt").read_text() == "years of work" and load_manifest(place / "e")
    (place / "e" / "thesis.txt").unlink()
    notices: list[str] = []
    build(place / "ck", place / "e", BuildOptions(force=True, dtype="fp16"), on_notice=notices.append)
    assert any("resuming" in line for line in notices), "nor is the work that was done"


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_what_appears_in_the_place_of_the_engine_meanwhile_is_not_lost(place: Path, kind: str) -> None:
    def appear(_written: int, _total: int) -> None:
        if not os.path.lexists(place / "new"):
            match kind:
                case "directory":
                    shutil.copytree(place / "ck", place / "new")
                case "file":
                    (place / "new").write_text("years of work")
                case "link":
                    (place / "new").symlink_to("e")

    before = everything(place / "ck") | everything(place / "e")
    with pytest.raises(StorageError, match="exists already and is not an engine directory"):
        build(place / "ck", place / "new", FORCE, on_progress=appear)
    assert everything(place / "ck") | everything(place / "e") == before
    assert os.path.lexists(place / "new")


def test_a_file_that_appears_in_the_partial_directory_is_not_lost(place: Path) -> None:
    directory = OutputDirectory(place / "new", replace=False)
    with pytest.raises(InputError, match="bad"), directory.writing() as partial:
        (partial / "thesis.txt").write_text("years of work")
        raise InputError("bad")
    assert os.listdir(place / ".new.partial") == ["thesis.txt"]


def test_a_file_that_appears_while_the_old_engine_is_removed_is_not_lost(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = module._exchange

    def late(a: Path, b: Path) -> None:
        (b / "thesis.txt").write_text("years of work")
        exchange(a, b)

    monkeypatch.setattr(module, "_exchange", late)
    build(place / "ck", place / "e", BuildOptions(force=True, dtype="fp16"))
    assert os.listdir(place / ".e.partial") == ["thesis.txt"]
