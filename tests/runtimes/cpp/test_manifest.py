"""Both runtimes read the same manifests, refuse the same ones, and say the same of them."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from manifest_changes import changed, places
from seeing import seeing_checkpoint

from fuzz_json import damaged_text, dumps, mutate_json
from l4export.engine.manifest import load_manifest, verify_files
from l4export.errors import CheckFailed, InputError, L4Error
from manifests import INT4, KINDS, planned_manifest
from native_library import native_library
from native_messages import told_alike
from workshop import Workshop

ACCEPTED = 1
"""The status of a manifest that is fine, whose files are missing."""

WORDS = ["static", "chunked", "fp16", "int8", "cpu", 16, 100, 101, None]


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory `m` in the current one, for a manifest."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


def native(directory: str | Path) -> tuple[int, str]:
    """Status and message of `l4_verify`."""
    library = native_library()
    status = library.l4_verify(os.fsencode(directory))
    return status, library.l4_last_error().decode() if status else ""


def compare(where: Path, texts: Iterable[str]) -> tuple[int, int]:
    """Hold the native runtime against Python's, which is the definition; how many were read, and how many refused."""
    counts = [0, 0]
    for text in texts:
        (where / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
        status, message = native("m")
        try:
            load_manifest(Path("m"))
        except InputError as error:
            assert status == 2, f"{error} / {message}: {text}"
            if told_alike(text, str(error)):
                assert message == str(error), text
            counts[1] += 1
        else:
            assert status == ACCEPTED, f"{message}: {text}"
            counts[0] += 1
    return counts[0], counts[1]


def mutations(raw: dict[str, Any], count: int | None = None, fields: Container[str] | None = None) -> Iterator[str]:
    """The manifest with changes at every place, or at `count` of them, in these fields."""
    found = [place for place in places(raw) if fields is None or place[0] in fields]
    if count is not None:
        found = random.Random(5).sample(found, min(count, len(found)))
    for place in found:
        yield from changed(raw, place)


@pytest.mark.parametrize("kind", ["static", "kv-int4", "cuda", "tensorrt-parts"])
def test_a_changed_field(where: Path, workshop: Workshop, kind: str) -> None:
    raw = planned_manifest(workshop.checkpoint("scout"), **KINDS[kind])
    accepted, refused = compare(where, [json.dumps(raw), *mutations(raw, 25)])
    assert accepted > 0 and refused > 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "vision", "packed"])
def test_every_changed_field(where: Path, workshop: Workshop, tmp_path: Path, kind: str, wide_scout: Path) -> None:
    raw = _manifest(kind, workshop, tmp_path, wide_scout)
    accepted, refused = compare(where, [json.dumps(raw), *mutations(raw)])
    assert accepted > 20 and refused > 500


@pytest.mark.parametrize("kind", ["vision", "packed"])
def test_a_changed_field_of_a_feature(
    where: Path, workshop: Workshop, tmp_path: Path, kind: str, wide_scout: Path
) -> None:
    raw = _manifest(kind, workshop, tmp_path, wide_scout)
    accepted, refused = compare(
        where, [json.dumps(raw), *mutations(raw, 25, ("requires", "vision", "packed_weights", "precision"))]
    )
    assert accepted > 0 and refused > 100


def _manifest(kind: str, workshop: Workshop, tmp_path: Path, wide_scout: Path) -> dict[str, Any]:
    if kind == "vision":
        return planned_manifest(seeing_checkpoint(tmp_path / "sees"), **KINDS["chunked"])
    if kind == "packed":
        raw = planned_manifest(wide_scout, **{**KINDS["cuda"], "policy": INT4})
        raw["requires"] = ["packed_weights"]
        name = next(iter(raw["files"]))
        raw["files"][name]["bytes"] = 1 << 20
        weight = {"name": "experts", "layout": "mixed_gemm_sm80", "bits": 4, "file": name, "offset": 64}
        raw["packed_weights"] = [{**weight, "shape": [4, 32, 32]}, {**weight, "name": "others", "shape": [1, 16, 64]}]
        return raw
    return planned_manifest(workshop.checkpoint("scout"), **KINDS[kind])


@pytest.mark.parametrize("seed", range(3))
def test_random_changes(where: Path, workshop: Workshop, seed: int) -> None:
    rng = random.Random(seed)
    kind = rng.choice(sorted(KINDS))
    raw = planned_manifest(workshop.checkpoint("scout"), **KINDS[kind])
    texts = []
    for _ in range(150):
        changed_raw = json.loads(json.dumps(raw))
        for _ in range(rng.choice([1, 1, 2])):
            changed_raw, _ = mutate_json(changed_raw, rng, WORDS)
        text = dumps(changed_raw)
        if rng.random() < 0.2:
            text = damaged_text(text, rng)[0].decode(errors="surrogateescape")
        texts.append(text)
    assert compare(where, texts)[1] > 20


def test_a_manifest_that_is_none(where: Path) -> None:
    texts = ["", "[]", "null", "{}", "{", '{"format": "l4export-engine"}', '{"a": 1, "a": 2}', '{"a": NaN}', "<html>"]
    texts += ["version https://git-lfs.github.com/spec/v1", "[" * 100_000, "{" + '"a":{' * 100]
    assert compare(where, texts) == (0, len(texts))


@pytest.mark.parametrize("name", ["nothing", "empty", "checkpoint", "file", "folder", "pipe"])
def test_what_is_no_engine(where: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name in ("empty", "checkpoint", "folder", "pipe"):
        path.mkdir()
    if name == "checkpoint":
        (path / "l4export").mkdir()
        (path / "l4export/manifest.json").write_text("{}")
    if name == "file":
        path.write_text("")
    if name == "folder":
        (path / "manifest.json").mkdir()
    if name == "pipe":
        os.mkfifo(path / "manifest.json")
    with pytest.raises(InputError) as caught:
        load_manifest(Path(name))
    assert native(name) == (2, str(caught.value))


def _verdict(engine: Path) -> tuple[int, str]:
    try:
        verify_files(engine)
    except L4Error as error:
        return error.exit_code, str(error)
    return 0, ""


def test_files_are_verified(workshop: Workshop, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(workshop.engine_path("scout", "static"), engine)
    assert native(engine) == _verdict(engine) == (0, "")
    manifest = load_manifest(engine)
    data = next(name for name in manifest.files if name.endswith(".data"))
    content = bytearray((engine / data).read_bytes())
    content[-1] ^= 1
    (engine / data).write_bytes(content)
    assert native(engine) == _verdict(engine)
    assert native(engine)[0] == CheckFailed.exit_code
    (engine / "decoder.onnx").write_bytes(b"")
    (engine / "generation_config.json").unlink(missing_ok=True)
    (engine / data).unlink()
    os.mkfifo(engine / data)
    assert native(engine) == _verdict(engine)
