from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from l4export.checkpoint import open_checkpoint
from l4export.errors import InputError
from workshop import ROOT

CONFIG = {"model_type": "llama4_text", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 4}
EMBED = "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


def single(path: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    safetensors.numpy.save_file(tensors or {EMBED: np.ones((8, 4), np.float32)}, path / "model.safetensors")
    return path


def sharded(path: Path, weight_map: dict[str, Any] | None = None) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, path / "one.safetensors")
    safetensors.numpy.save_file({"b": np.zeros(3, np.float16)}, path / "two.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"} if weight_map is None else weight_map
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_single_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(single(tmp_path))
    assert checkpoint.prefix == "" and checkpoint.raw_config == CONFIG and checkpoint.config.vocab_size == 8
    tensor = checkpoint.tensor(EMBED, (8, 4))
    assert (tensor.name, tensor.shape, tensor.dtype, tensor.nbytes) == (EMBED, (8, 4), np.dtype("float32"), 128)
    assert tensor.file_name == "model.safetensors" and checkpoint.path == tmp_path
    np.testing.assert_array_equal(tensor.read(), np.ones((8, 4)))


def test_multimodal_prefix(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(single(tmp_path, {"language_model.a": np.ones(2, np.float32)}))
    assert checkpoint.prefix == "language_model." and checkpoint.tensor("a", (2,)).name == "language_model.a"


def test_shards_behind_symbolic_links(tmp_path: Path) -> None:
    path = sharded(tmp_path / "c")
    (path / "two.safetensors").rename(tmp_path / "blob")
    (path / "two.safetensors").symlink_to(tmp_path / "blob")
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.tensors) == {"a", "b"} and len(checkpoint.files) == 2
    assert checkpoint.tensor("b", (3,)).read().dtype == np.float16


def test_what_tensor_refuses(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(single(tmp_path, {EMBED: np.ones((8, 4), np.float32), "i": np.ones(2, np.int8)}))
    for name, shape, words in (
        (EMBED, (4, 8), ("[8, 4]", "[4, 8]", "model.safetensors")),
        ("model.norm.weight", (4,), ("model.norm.weight", "missing")),
        ("i", (2,), ("'i'", "I8", "BF16")),
    ):
        with pytest.raises(InputError) as error:
            checkpoint.tensor(name, shape)
        assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/x.safetensors", "d/x.safetensors", "..", "", "d\\x.safetensors", "x\n.safetensors",
     "x\0.safetensors", "\ud800.safetensors", "pytorch_model.bin"],
)  # fmt: skip
def test_index_may_only_name_plain_files(name: str, tmp_path: Path) -> None:
    single(tmp_path / "d")
    single(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    refused(sharded(tmp_path / "c", {"a": name}), INDEX, "plain name")


@pytest.mark.parametrize("weight_map", [[], {}, "x", {"a": 1}, {"a": None}])
def test_malformed_index(weight_map: Any, tmp_path: Path) -> None:
    path = sharded(tmp_path / "c")
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(path, INDEX, "weight_map")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000, "\xff"])
def test_malformed_json(text: str, tmp_path: Path) -> None:
    path = sharded(tmp_path / "c")
    (path / INDEX).write_bytes(text.encode("latin-1"))
    refused(path, INDEX)
    (path / "config.json").write_bytes(text.encode("latin-1"))
    refused(path, "config.json")


def test_contradictory_shards(tmp_path: Path) -> None:
    refused(sharded(tmp_path / "1", {"a": "one.safetensors", "b": "three.safetensors"}), "missing shard", "three")
    path = sharded(tmp_path / "3")
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32), "b": np.zeros(3)}, path / "two.safetensors")
    refused(path, "'a'", "one.safetensors", "two.safetensors")


def test_an_index_is_only_asked_for_its_shards(tmp_path: Path) -> None:
    """Entries without a tensor and tensors without an entry are as in transformers, until such a tensor is needed."""
    extra = {"a": "two.safetensors", "b": "two.safetensors", "c": "one.safetensors"}
    checkpoint = open_checkpoint(sharded(tmp_path / "1", extra))
    assert set(checkpoint.tensors) == {"a", "b"} and checkpoint.tensors["a"].file_name == "one.safetensors"
    with pytest.raises(InputError, match=rf"{INDEX}: tensor 'c' is not in one.safetensors; download"):
        checkpoint.tensor("c", (2,))


def test_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such file or directory")
    refused(tmp_path, "config.json is missing")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    refused(tmp_path, "model.safetensors")
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    refused(tmp_path, "params.json is missing", "consolidated.00.pth")
    (tmp_path / "consolidated.00.pth").unlink()
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    refused(tmp_path, "regular")


def test_header_digest(tmp_path: Path) -> None:
    digests = {open_checkpoint(single(tmp_path / f"{i}")).header_digest() for i in range(2)}
    digests.add(open_checkpoint(single(tmp_path / "2", {EMBED: np.zeros((8, 4), np.float32)})).header_digest())
    assert len(digests) == 1  # neither the place nor the weights matter
    digests.add(open_checkpoint(single(tmp_path / "3", {EMBED: np.ones((4, 8), np.float32)})).header_digest())
    digests.add(open_checkpoint(single(tmp_path / "4", {EMBED: np.ones((8, 4), np.int32)})).header_digest())
    (single(tmp_path / "5") / "config.json").write_text(json.dumps(CONFIG) + " ")
    digests.add(open_checkpoint(tmp_path / "5").header_digest())
    assert len(digests) == 4


INDICES: list[Any] = [
    (),
    (2,),
    (-1, slice(None), slice(3, 9)),
    (slice(None), 4),
    (slice(None), slice(None), 0),
    (slice(None, None, -1), slice(1, None, 2)),
    (slice(4, 0, -2), slice(-3, None), slice(None, None, -3)),
    (slice(0, 0),),
    (slice(3, 100), slice(5, 2)),
    (1, 2, 3),
    (slice(0, 5, 3), slice(2, 7), slice(1, 11, 4)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("piece", [32 * 2**20, 300, 40, 8])
def test_read_equals_numpy_indexing(dtype: type, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).standard_normal((5, 7, 11)).astype(dtype)
    checkpoint = open_checkpoint(single(tmp_path, {"pad": np.ones(3, np.int8), "x": array}))  # unaligned on purpose
    monkeypatch.setattr("l4export.checkpoint.source_tensor._PIECE", piece)
    for index in INDICES:
        found = checkpoint.tensors["x"].read(index)
        expected = np.asarray(array[index])
        assert found.dtype == expected.dtype and found.shape == expected.shape, index
        assert found.tobytes() == expected.tobytes(), index
        assert found.flags.c_contiguous and found.flags.writeable
    with pytest.raises(IndexError):
        checkpoint.tensors["x"].read((0, 0, 0, 0))
    with pytest.raises(IndexError):
        checkpoint.tensors["x"].read((5,))
    with pytest.raises(TypeError):
        checkpoint.tensors["x"].read((None,))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("piece", [32 * 2**20, 300, 40, 8])
@pytest.mark.parametrize("multiple", [1, 2, 3])
def test_rows_are_the_matrix_in_pieces(
    dtype: type, piece: int, multiple: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).standard_normal((5, 7, 11)).astype(dtype)
    checkpoint = open_checkpoint(single(tmp_path, {"pad": np.ones(3, np.int8), "x": array}))  # unaligned on purpose
    monkeypatch.setattr("l4export.checkpoint.source_tensor._PIECE", piece)
    for rows in (slice(0, 7), slice(2, 7), slice(3, 4), slice(5, 5)):
        expected, next_row = array[3, rows, 2:10], 0
        for first, found in checkpoint.tensors["x"].rows((3, rows, slice(2, 10)), multiple):
            assert first == next_row and first % multiple == 0 and found.dtype == array.dtype
            assert found.tobytes() == expected[first : first + len(found)].tobytes()
            assert len(found) <= max(multiple, piece / (11 * array.itemsize))
            next_row += len(found)
        assert next_row == len(expected)


def test_rows_of_a_file_that_shrinks_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(single(tmp_path, {"x": np.ones((4, 2**12), np.float32)}))
    monkeypatch.setattr("l4export.checkpoint.source_tensor._PIECE", 2**14)
    rows = checkpoint.tensors["x"].rows((slice(0, 4), slice(0, 2**12)))
    next(rows)
    os.truncate(tmp_path / "model.safetensors", 2**14)
    with pytest.raises(InputError, match="shrank"):
        next(rows)


def test_resident_memory_stays_bounded(tmp_path: Path) -> None:
    """A column slice of a sparse 512 MiB matrix, in a process of its own so that its peak is its own."""
    shape = (2**14, 2**13)
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 2**29]}}).encode()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**29)
    script = f"""
        from pathlib import Path
        from l4export.checkpoint import open_checkpoint
        from measured_process import own_peak
        tensor = open_checkpoint(Path({str(tmp_path)!r})).tensors["x"]
        before = own_peak()
        columns = tensor.read((slice(None), slice(100, 164)))
        assert columns.shape == ({shape[0]}, 64) and not columns.any()
        for _, rows in tensor.rows((slice(0, {shape[0]}), slice(100, 164))):
            assert not rows.any()
        print(own_peak() - before - columns.nbytes)
    """
    run = [sys.executable, "-c", textwrap.dedent(script)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    extra = int(subprocess.run(run, check=True, capture_output=True, text=True, env=env).stdout)
    assert extra < 40 * 2**20
    assert resource.getpagesize() <= 2**16  # the bound above assumes pages far below a piece


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    import time

    header = json.dumps({"x": {"dtype": "BF16", "shape": [2**20, 2**20], "data_offsets": [0, 2**41]}}).encode()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + 2**41)
        except OSError:
            pytest.skip("the file system has no sparse files of 2 TiB")
    start = time.perf_counter()
    open_checkpoint(tmp_path)
    assert time.perf_counter() - start < 0.5
