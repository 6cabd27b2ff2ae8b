from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from l4export import runtimes
from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import FORMAT_VERSION, MANIFEST, load_manifest, verify_files
from l4export.errors import CheckFailed, InputError
from l4export.storage.file_records import file_record

Raw = dict[str, Any]

FILES = ("decoder.onnx", "decoder-00001-of-00001.data", "genai_config.json")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("manifest")
    write_sample(root / "scout", "scout", "tiny", seed=0)
    build(root / "scout", root / "engine", BuildOptions(max_context=64))
    return root / "engine"


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    """An engine that the test may damage."""
    shutil.copytree(built, tmp_path / "engine")
    return tmp_path / "engine"


def rewrite(engine: Path, edit: Callable[[Raw], Any]) -> None:
    """Change the manifest's JSON in place."""
    raw = json.loads((engine / MANIFEST).read_text(encoding="utf-8"))
    edit(raw)
    (engine / MANIFEST).write_text(json.dumps(raw), encoding="utf-8")


def refusal(engine: Path) -> str:
    """The one line with which `load_manifest` refuses."""
    with pytest.raises(InputError) as error:
        load_manifest(engine)
    message = str(error.value)
    assert len(message.splitlines()) == 1 and str(engine) in message
    return message


# Round trip


def test_a_manifest_is_read_as_it_was_written(built: Path) -> None:
    assert load_manifest(built).to_json() == (built / MANIFEST).read_text(encoding="utf-8")


def test_a_manifest_describes_the_build(built: Path) -> None:
    manifest = load_manifest(built)
    assert (manifest.target, manifest.max_context, manifest.kv_layout) == ("ort-cpu", 64, "static")
    assert [layer.kind for layer in manifest.kv_layers] == ["chunked"] * 3 + ["full"]
    assert {layer.capacity for layer in manifest.kv_layers} == {64}
    assert sorted(manifest.files) == sorted(FILES)


def test_caches_that_grow_have_no_capacity(built: Path, tmp_path: Path) -> None:
    build(built.parent / "scout", tmp_path / "e", BuildOptions(kv_layout="concat"))
    assert {layer.capacity for layer in load_manifest(tmp_path / "e").kv_layers} == {None}


@pytest.mark.parametrize(("context", "slots"), [(100, [16, 16, 16, 100]), (10, [10] * 4)])
def test_chunked_layers_have_the_capacity_of_a_chunk(
    built: Path, tmp_path: Path, context: int, slots: list[int]
) -> None:
    build(built.parent / "scout", tmp_path / "e", BuildOptions(kv_layout="chunked", max_context=context))
    manifest = load_manifest(tmp_path / "e")
    assert [layer.capacity for layer in manifest.kv_layers] == slots
    assert manifest.prefill_cut == 16
    assert manifest.to_json() == (tmp_path / "e" / MANIFEST).read_text(encoding="utf-8")


@pytest.mark.parametrize("layout", ["static", "concat"])
def test_only_chunks_are_cut_at(built: Path, tmp_path: Path, layout: str) -> None:
    assert build(built.parent / "scout", tmp_path / "e", BuildOptions(kv_layout=layout)).prefill_cut is None


def test_file_record(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    record = file_record(tmp_path / "f")
    assert record.bytes == 3
    assert record.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


# Not a manifest


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    assert "no such engine directory" in refusal(tmp_path / "missing")


def test_a_directory_without_manifest_is_refused(tmp_path: Path) -> None:
    assert "not an engine directory (no manifest.json)" in refusal(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="half"),
        pytest.param(b"\x80\xff", id="not UTF-8"),
        pytest.param(b"[" * 200_000, id="deep"),
        pytest.param(b'{"format_version": ' + b"9" * 10_000 + b"}", id="long number"),
    ],
)
def test_what_is_not_json_is_refused(engine: Path, data: bytes) -> None:
    (engine / MANIFEST).write_bytes(data)
    assert re.search("not valid JSON|nested too deeply", refusal(engine))


def test_deep_nesting_in_a_field_is_refused(engine: Path) -> None:
    text = (engine / MANIFEST).read_text(encoding="utf-8")
    (engine / MANIFEST).write_text(text.replace('"options": {', '"options": {"a":' + "[" * 200_000, 1))
    assert "nested too deeply" in refusal(engine)


@pytest.mark.parametrize("data", ["[]", "null", "3", '"l4export-engine"'])
def test_json_that_is_no_object_is_refused(engine: Path, data: str) -> None:
    (engine / MANIFEST).write_text(data)
    assert "expected a JSON object" in refusal(engine)


@pytest.mark.parametrize("data", ["{}", '{"format": "other"}', '{"format": []}'])
def test_other_json_is_refused(engine: Path, data: str) -> None:
    (engine / MANIFEST).write_text(data)
    assert "not an l4export manifest" in refusal(engine)


def test_a_field_that_appears_twice_is_refused(engine: Path) -> None:
    """Readers differ in which one they take."""
    text = (engine / MANIFEST).read_text(encoding="utf-8")
    (engine / MANIFEST).write_text(text.replace('"max_context": 64', '"max_context": 64, "max_context": 63'))
    assert "twice" in refusal(engine)


def test_a_gigantic_manifest_is_not_read(engine: Path) -> None:
    with open(engine / MANIFEST, "r+b") as handle:
        handle.truncate(1 << 40)
    assert "64 MiB" in refusal(engine)


# Versions


def test_a_newer_version_is_refused(engine: Path) -> None:
    rewrite(engine, lambda raw: raw.update(format_version=FORMAT_VERSION + 1))
    assert "is newer than this l4export reads" in refusal(engine)


def test_an_older_version_is_refused(engine: Path) -> None:
    rewrite(engine, lambda raw: raw.update(format_version=FORMAT_VERSION - 1))
    assert "is older than this l4export reads" in refusal(engine)


def test_a_newer_version_is_refused_whatever_else_it_holds(engine: Path) -> None:
    (engine / MANIFEST).write_text(json.dumps({"format": "l4export-engine", "format_version": FORMAT_VERSION + 1}))
    assert "upgrade l4export" in refusal(engine)


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, [1]])
def test_a_version_that_is_no_positive_number_is_refused(engine: Path, version: Any) -> None:
    rewrite(engine, lambda raw: raw.update(format_version=version))
    assert "format_version is not a positive number" in refusal(engine)


# Files


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b", "../a\nb"], ids=repr
)
def test_file_names_that_lead_outside_are_refused(engine: Path, name: str) -> None:
    rewrite(engine, lambda raw: raw["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    assert re.search("leads outside the engine|expected 1 to 1000 printable characters", refusal(engine))


# verify


def test_an_untouched_engine_passes(built: Path) -> None:
    assert verify_files(built) == load_manifest(built)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("position", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found(engine: Path, name: str, position: int) -> None:
    flip(engine / name, position)
    with pytest.raises(CheckFailed, match=f"{name} has been changed; build or copy the engine again"):
        verify_files(engine)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(engine: Path, name: str) -> None:
    (engine / name).unlink()
    with pytest.raises(CheckFailed, match=f"{name} is missing"):
        verify_files(engine)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found(engine: Path, name: str) -> None:
    size = (engine / name).stat().st_size
    with open(engine / name, "r+b") as handle:
        handle.truncate(size - 1)
    with pytest.raises(CheckFailed, match=f"{name} has {size - 1} bytes, not {size}"):
        verify_files(engine)


def test_every_damaged_file_is_named_in_one_line(engine: Path) -> None:
    for name in FILES:
        (engine / name).unlink()
    with pytest.raises(CheckFailed) as error:
        verify_files(engine)
    assert all(name in str(error.value) for name in FILES) and "\n" not in str(error.value)


def test_a_directory_in_a_files_place_is_found(engine: Path) -> None:
    (engine / "genai_config.json").unlink()
    (engine / "genai_config.json").mkdir()
    with pytest.raises(CheckFailed, match="genai_config"):
        verify_files(engine)


# runtimes.load


def test_an_untouched_engine_loads(built: Path) -> None:
    assert runtimes.load(built, threads=1).manifest == load_manifest(built)


@pytest.mark.parametrize("name", FILES)
def test_load_refuses_a_missing_file(engine: Path, name: str) -> None:
    (engine / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        runtimes.load(engine)


@pytest.mark.parametrize("name", FILES)
def test_load_refuses_a_short_file(engine: Path, name: str) -> None:
    with open(engine / name, "r+b") as handle:
        handle.truncate(100)
    with pytest.raises(InputError, match=f"{name}.* 100 bytes"):
        runtimes.load(engine)


@pytest.mark.parametrize("name", FILES)
def test_load_refuses_a_changed_small_file(engine: Path, name: str) -> None:
    flip(engine / name, 1000 if name != "genai_config.json" else 10)
    with pytest.raises(InputError, match=f"{name} has been changed"):
        runtimes.load(engine)


def test_load_tells_in_one_line_of_a_graph_that_cannot_be_loaded(engine: Path) -> None:
    (engine / "decoder.onnx").write_bytes(b"not a graph")
    record = file_record(engine / "decoder.onnx")
    rewrite(engine, lambda raw: raw["files"]["decoder.onnx"].update(bytes=record.bytes, sha256=record.sha256))
    with pytest.raises(InputError, match="cannot load it") as error:
        runtimes.load(engine)
    assert "\n" not in str(error.value)
