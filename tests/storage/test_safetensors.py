from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l4export.errors import InputError, StorageError
from l4export.storage.safetensors import TensorFile, parse_json_object, read_header
from l4export.storage.safetensors_writer import write_safetensors

NAMES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def raw_file(path: Path, header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


HOSTILE: dict[str, tuple[Any, bytes, int | None, str]] = {
    "gigantic header": (b"{}", b"", 2**63, "header of"),
    "header past the end": (b"{}", b"", 1000, "truncated"),
    "header of zero bytes": (b"", b"", None, "start with"),
    "not UTF-8": (b'{"\xff": 1}', b"", None, "UTF-8"),
    "not JSON": (b'{"a\n":', b"", None, "JSON"),
    "leading space": (b" {}", b"", None, "start with"),
    "array": (b"[]", b"", None, "start with"),
    "deep nesting": (b'{"a":' * 100_000, b"", None, "nested"),
    "deep arrays": (b'{"a":' + b"[" * 100_000, b"", None, "nested"),
    "NaN": (b'{"a": NaN}', b"", None, "JSON"),
    "enormous integer": (b'{"a": ' + b"9" * 5000 + b"}", b"", None, "JSON"),
    "duplicate tensor": (b'{"a": {}, "a": {}}', b"", None, "twice"),
    "duplicate key": (b'{"a": {"dtype": "F32", "dtype": "F16"}}', b"", None, "twice"),
    "entry not an object": ({"a": [1]}, b"", None, "expected an object"),
    "missing key": ({"a": {"dtype": "F32", "shape": []}}, b"", None, "expected an object"),
    "extra key": ({"a": {**entry(0, 4), "x": 1}}, b"1234", None, "expected an object"),
    "unknown dtype": ({"a": entry(0, 4, dtype="F31\n")}, b"1234", None, "dtype"),
    "dtype not a string": ({"a": entry(0, 4, dtype=["F32"])}, b"1234", None, "dtype"),
    "shape not an array": ({"a": {**entry(0, 4), "shape": "1"}}, b"1234", None, "shape"),
    "float dimension": ({"a": entry(0, 4, [1.0])}, b"1234", None, "shape"),
    "boolean dimension": ({"a": entry(0, 4, [True])}, b"1234", None, "shape"),
    "negative dimensions": ({"a": entry(0, 4, [-1, -1])}, b"1234", None, "shape"),
    "overflowing dimensions": ({"a": entry(0, 4, [2**62, 4, 2**32])}, b"1234", None, "takes"),
    "product wraps to the size": ({"a": entry(0, 4, [2**32 + 1, 2**32])}, b"1234", None, "takes"),
    "dimension beyond 64 bits": ({"a": entry(0, 4, [2**64])}, b"1234", None, "shape"),
    "many dimensions": ({"a": entry(0, 4, [1] * 1000)}, b"1234", None, "dimensions"),
    "too few bytes": ({"a": entry(0, 4, [2])}, b"1234", None, "takes"),
    "too many bytes": ({"a": entry(0, 8, [1])}, b"12345678", None, "takes"),
    "half a byte": ({"a": entry(0, 1, [3], "F4")}, b"1", None, "takes"),
    "offsets reversed": ({"a": entry(4, 0, [1])}, b"1234", None, "start, stop"),
    "negative offset": ({"a": entry(-4, 0, [1])}, b"1234", None, "data_offsets"),
    "three offsets": ({"a": {**entry(0, 4), "data_offsets": [0, 4, 4]}}, b"1234", None, "start, stop"),
    "gap": ({"a": entry(0, 4), "b": entry(8, 12)}, b"123456789012", None, "gap"),
    "gap at the start": ({"a": entry(4, 8)}, b"12345678", None, "gap"),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, b"123456789012", None, "overlaps"),
    "same bytes twice": ({"a": entry(0, 4), "b": entry(0, 4)}, b"1234", None, "overlaps"),
    "truncated": ({"a": entry(0, 400)}, b"1234", None, "truncated: header describes"),
    "extra bytes": ({"a": entry(0, 4)}, b"12345", None, "after the last"),
    "metadata not an object": ({"__metadata__": "x"}, b"", None, "__metadata__"),
    "metadata values": ({"__metadata__": {"a": 1}}, b"", None, "__metadata__"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(case: str, tmp_path: Path) -> None:
    header, data, length, words = HOSTILE[case]
    path = raw_file(tmp_path / "x.safetensors", header, data, length)
    for reader in (read_header, TensorFile):
        with pytest.raises(InputError) as error:
            reader(path)
        message = str(error.value)
        assert words in message and str(path) in message and "\n" not in message and len(message) < 500


@pytest.mark.parametrize(
    ("unit", "words"),
    [(b"[" * 60 + b"]" * 60 + b",", "values"), (b"[],", "values"), (b"1,", "values"), (b'{"a":', "values")],
)
def test_many_values_are_counted_before_they_are_made(unit: bytes, words: str, tmp_path: Path) -> None:
    """Of such a header of 64 MiB Python's objects would take 2 GB, and most of a minute."""
    text = b'{"a":[' + unit * (2**25 // len(unit)) + b"0]}"
    path = raw_file(tmp_path / "x.safetensors", text)
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(InputError, match=words):
        read_header(path)
    assert time.perf_counter() - began < 5
    assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    tracemalloc.stop()


@pytest.mark.parametrize(("depth", "fine"), [(64, True), (65, False), (900, False), (100_000, False)])
def test_json_has_a_depth(depth: int, fine: bool) -> None:
    text = b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)
    if fine:
        assert parse_json_object(text, "w")
    else:
        with pytest.raises(InputError, match=r"w: JSON is nested too deeply"):
            parse_json_object(text, "w")


def test_a_header_of_the_most_tensors_is_read(tmp_path: Path) -> None:
    """Eighty thousand: Maverick's experts one by one, in four parts each."""
    header = {
        f"model.layers.{n // 1000}.experts.{n % 1000}.gate_proj.weight": entry(4 * n, 4 * n + 4) for n in range(80_000)
    }
    file = TensorFile(raw_file(tmp_path / "x.safetensors", header, bytes(4 * len(header))))
    assert len(file.entries) == 80_000


@pytest.mark.parametrize("size", [0, 7])
def test_shorter_than_eight_bytes(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\0" * size)
    with pytest.raises(InputError, match="truncated"):
        read_header(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_never_crash(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = json.dumps({"a": entry(0, 8), "b": entry(8, 12, [])}).encode()
    content = bytearray(len(header).to_bytes(8, "little") + header + bytes(12))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) - 3, len(content)))])
    try:
        file = TensorFile(path)
        for found in file.entries.values():
            if found.dtype in NAMES:
                file.array(found)
    except InputError as error:
        assert "\n" not in str(error)


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, problem in ((tmp_path / "none", "no such file"), (tmp_path / "pipe", "regular"), (tmp_path, "regular")):
        with pytest.raises(InputError, match=problem):
            read_header(path)


arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    .view(dtype).reshape(shape),
    st.sampled_from(list(NAMES.values())),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.integers(0, 2**32),
)  # fmt: skip
tensors = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), arrays, max_size=6).map(
    lambda named: {name: array for name, array in named.items() if name != "__metadata__"}
)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(named=tensors, metadata=st.booleans())
def test_reads_what_the_library_writes(named: dict[str, np.ndarray], metadata: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(named, path, metadata={"format": "np"} if metadata else None)
    file = TensorFile(path)
    assert set(file.entries) == set(named) and file.entries == read_header(path)
    for name, array in named.items():
        view = file.array(file.entries[name])
        assert same(view, array) and not view.flags.writeable and not view.flags.owndata
        file.release(view)
        assert same(view, array)  # released pages come back


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(named=tensors, pieces=st.integers(1, 7))
def test_the_library_reads_what_we_write(named: dict[str, np.ndarray], pieces: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.unlink(missing_ok=True)
    spelled = {dtype: name for name, dtype in NAMES.items()}
    entries = [(name, spelled[array.dtype], array.shape) for name, array in named.items()]
    write_safetensors(path, entries, lambda name: np.array_split(named[name].reshape(-1), pieces))
    found = safetensors.numpy.load_file(path)
    assert set(found) == set(named) and all(same(found[name], array) for name, array in named.items())
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    assert set(read_header(path)) == set(named)


def test_writer_leaves_no_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for given_bytes in (b"123", b"12345"):
        with pytest.raises(ValueError, match="expected"):
            write_safetensors(path, [("a", "F32", (1,))], lambda _, piece=given_bytes: [piece])  # type: ignore[misc]
        assert not path.exists()
    with pytest.raises(ValueError, match="taken"):
        write_safetensors(path, [("a", "F32", (1,))] * 2, lambda _: [b"1234"])
    write_safetensors(path, [("a", "F32", (1,))], lambda _: [bytearray(b"12"), memoryview(b"34")])
    assert path.read_bytes().endswith(b"1234")
    with pytest.raises(StorageError):
        write_safetensors(path, [], lambda _: [])
    assert path.exists()


def test_a_file_that_shrinks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.ones(10_000, np.float32)}, path)
    file = TensorFile(path)
    os.truncate(path, 20_000)
    with pytest.raises(InputError, match="shrank"):
        file.array(file.entries["a"])


def test_other_dtypes_parse_and_are_refused_by_name(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x.safetensors", {"a": entry(0, 4, [4], "F8_E5M2")}, b"1234")
    file = TensorFile(path)
    with pytest.raises(InputError, match="F8_E5M2"):
        file.array(file.entries["a"])


def test_holes_read_as_zeros(tmp_path: Path) -> None:
    """In the middle and at the end, which the file must be long enough for."""
    path, entries = tmp_path / "f.safetensors", [(name, "F32", (2**18,)) for name in "abcd"]
    write_safetensors(path, entries, lambda name: [np.ones(2**18, np.float32)] if name in "ac" else None)
    assert [bool(values.any()) for _, values in sorted(safetensors.numpy.load_file(path).items())] == [
        True,
        False,
        True,
        False,
    ]
    assert path.stat().st_blocks * 512 < 2.1 * 2**20 < 4 * 2**20 < path.stat().st_size


def test_small_tensors_leave_no_pages_in_memory(tmp_path: Path) -> None:
    """Linux maps 64 KiB around a page that is read: of 200 scales between codes that was 10 MB."""
    path, count = tmp_path / "f.safetensors", 200
    entries = [(f"{i}.{name}", "U8", (size,)) for i in range(count) for name, size in (("w", 2**18), ("s", 2**10))]
    write_safetensors(path, entries, lambda name: [np.ones(2**18 if name.endswith("w") else 2**10, np.uint8)])
    file = TensorFile(path)

    def mapped() -> int:
        return int(Path("/proc/self/status").read_text().partition("RssFile:")[2].split()[0]) * 1024

    before = mapped()
    for i in range(count):
        values = file.array(file.entries[f"{i}.s"])
        assert values.sum() == 2**10
        file.release(values)
    assert mapped() - before < 2 * 2**20
