"""Graphs of engines that others have made: damaged, exchanged, enormous, or with weights in other files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from l4export.benchmark.measure import bench
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError, L4Error
from l4export.inspection.dequantized_weights import DequantizedWeights, dequantized_weights, input_scales
from l4export.inspection.facts import inspect
from l4export.inspection.graph_file import load_graph
from l4export.inspection.taps import tap_engine
from l4export.runtimes import load
from workshop import Workshop, random_ids

READERS: dict[str, Callable[[Path], object]] = {
    "inspect": inspect,
    "load_graph": load_graph,
    "DequantizedWeights": DequantizedWeights,
    "dequantized_weights": lambda engine: list(dequantized_weights(engine)),
    "input_scales": input_scales,
    "tap_engine": lambda engine: tap_engine(engine, load_manifest(engine), [random_ids(3)]),
    "bench": lambda engine: bench(engine, 4, 4, 1),
    "load": load,
}
readers = pytest.mark.parametrize("reader", READERS)


@pytest.fixture
def engine(workshop: Workshop, tmp_path: Path) -> Path:
    path = tmp_path / "e"
    shutil.copytree(workshop.engine_path("scout", "static"), path)
    return path


def sign(engine: Path, name: str = "decoder.onnx") -> None:
    """Let the manifest say what the file is now, as whoever makes a hostile engine would."""
    manifest = json.loads((engine / "manifest.json").read_text())
    path = engine / name
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.stat().st_size < 2**26 else "0" * 64
    manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": digest}
    (engine / "manifest.json").write_text(json.dumps(manifest))


def refused(engine: Path, reader: str, words: str) -> None:
    with pytest.raises(L4Error, match=words) as caught:
        READERS[reader](engine)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@readers
@pytest.mark.parametrize("kind", ["pipe", "zero", "sparse", "directory", "missing", "changed"])
@pytest.mark.parametrize("name", ["decoder.onnx", "decoder-00001-of-00001.data"])
def test_files_of_another_kind_or_size(engine: Path, reader: str, kind: str, name: str) -> None:
    path = engine / name
    data = path.read_bytes()
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "sparse":
            with open(path, "wb") as file:
                file.truncate(3 << 30)
        case "directory":
            path.mkdir()
        case "changed":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(engine, reader, "missing or not a regular file|bytes instead of|has been changed")


@readers
def test_a_graph_that_the_manifest_says_is_enormous(engine: Path, reader: str) -> None:
    with open(engine / "decoder.onnx", "wb") as file:
        file.truncate(3 << 30)
    sign(engine)
    refused(engine, reader, "a graph has at most")


@pytest.mark.parametrize("reader", ["inspect", "DequantizedWeights"])
def test_a_small_file_that_is_millions_of_parts(engine: Path, reader: str) -> None:
    model = onnx.ModelProto(ir_version=11)
    model.graph.node.extend([onnx.NodeProto(op_type="A")] * 300_000)
    (engine / "decoder.onnx").write_bytes(model.SerializeToString())
    sign(engine)
    refused(engine, reader, "more than 250000 parts")


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"{}", b"\x08\x0b" + b"\x3a\x02\x0a\x00"], ids=repr)
def test_a_file_that_is_no_graph_of_an_engine(engine: Path, data: bytes) -> None:
    (engine / "decoder.onnx").write_bytes(data)
    sign(engine)
    for reader in ("inspect", "DequantizedWeights", "input_scales"):
        try:
            READERS[reader](engine)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("location", "/etc/passwd", "no file of the engine"),
        ("location", "../checkpoint/model.safetensors", "no file of the engine"),
        ("location", "/dev/zero", "no file of the engine"),
        ("location", "manifest.json", "no file of the engine"),
        ("location", "decoder.onnx", "goes beyond the end"),
        ("offset", str(1 << 40), "goes beyond the end"),
        ("offset", "-4096", "goes beyond the end|not a graph"),
        ("offset", "x", "not a graph"),
        ("length", "17", "its shape needs"),
        ("length", str(1 << 62), "its shape needs"),
    ],
)
def test_weights_that_lie_elsewhere(engine: Path, key: str, value: str, words: str) -> None:
    model = onnx.load(engine / "decoder.onnx", load_external_data=False)
    tensor = max((each for each in model.graph.initializer if each.external_data), key=lambda each: len(each.name))
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value
    tensor.dims[0] *= 1000 if value == "decoder.onnx" else 1
    if value == "decoder.onnx":
        for entry in tensor.external_data:
            if entry.key == "length":
                entry.value = str(1000 * int(entry.value))
    (engine / "decoder.onnx").write_bytes(model.SerializeToString())
    sign(engine)
    for reader in ("inspect", "load_graph", "dequantized_weights", "input_scales"):
        refused(engine, reader, words)


@pytest.mark.parametrize("reader", ["inspect", "DequantizedWeights"])
def test_a_node_that_reads_what_nothing_gives(engine: Path, reader: str, capfd: pytest.CaptureFixture[str]) -> None:
    graph = onnx.load(engine / "decoder.onnx", load_external_data=False)
    next(tensor for tensor in graph.graph.initializer if tensor.name == "model.norm.weight").name = "x"
    (engine / "decoder.onnx").write_bytes(graph.SerializeToString())
    sign(engine)
    refused(engine, reader, "nothing in it gives")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("reader", ["inspect", "DequantizedWeights"])
def test_a_weight_without_a_type(engine: Path, reader: str) -> None:
    graph = onnx.load(engine / "decoder.onnx", load_external_data=False)
    next(tensor for tensor in graph.graph.initializer if tensor.name == "model.norm.weight").data_type = 0
    (engine / "decoder.onnx").write_bytes(graph.SerializeToString())
    sign(engine)
    refused(engine, reader, "'model.norm.weight' has no data type")


def test_a_message_of_another_library_with_control_characters(engine: Path) -> None:
    graph = onnx.load(engine / "decoder.onnx", load_external_data=False)
    graph.graph.node[0].op_type = "x\x1b[31m\u202e"
    (engine / "decoder.onnx").write_bytes(graph.SerializeToString())
    sign(engine)
    with pytest.raises(InputError) as caught:
        load(engine)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("command", ["inspect", "verify", "run --token-ids 1", "bench --prefill 9 --decode 9"])
def test_commands_end_at_once_with_the_documented_exit_code(engine: Path, command: str) -> None:
    (engine / "decoder.onnx").unlink()
    os.mkfifo(engine / "decoder.onnx")
    name, *rest = command.split()
    done = subprocess.run(
        [sys.executable, "-m", "l4export", name, str(engine), *rest],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == (1 if name == "verify" else 2)
    assert done.stderr.count("\n") == 1 and "decoder.onnx" in done.stderr


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "zero", "directory"])
def test_a_checkpoint_of_pipes_and_devices(workshop: Workshop, tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "c"
    shutil.copytree(workshop.checkpoint("scout"), path)
    (path / name).unlink()
    match kind:
        case "pipe":
            os.mkfifo(path / name)
        case "zero":
            (path / name).symlink_to("/dev/zero")
        case "directory":
            (path / name).mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        inspect(path)
