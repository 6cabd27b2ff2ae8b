"""Files of torch.save are read as torch reads them, and nothing in them is ever executed."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_archives import Call, Outside, Word, archive_of, pack_archive, pickled, tensor, unpack_archive

from l4export.errors import InputError, L4Error
from l4export.storage.torch_zip import TorchFile

ARRAY = {"a": np.arange(12, dtype=np.float32).reshape(3, 4)}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refused(data: bytes, place: Path, *words: str) -> str:
    path = written(place / "x.pth", data)
    with pytest.raises(InputError) as error:
        TorchFile(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 600
    assert all(word in message for word in words), message
    return message


class Module(torch.nn.Module):
    """What a state dict of Meta's has beside weights: an extra state that is an object of bytes, versions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(3, 2)

    def get_extra_state(self) -> io.BytesIO:
        return io.BytesIO(bytes(range(256)))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_as_torch_reads_them(tmp_path: Path, protocol: int) -> None:
    weights: dict[str, Any] = Module().state_dict()
    values = torch.arange(24.0)
    weights |= {
        "bf16": values.bfloat16().view(4, 6),
        "half": torch.nn.Parameter(values.half()),
        "transposed": values.view(4, 6).t(),
        "permuted": values.view(2, 3, 4).permute(2, 0, 1),
        "columns": values.view(4, 6)[:, 1:3],
        "later rows": values.view(4, 6)[2:],
        "fp8": torch.nn.Parameter(values.view(4, 6).to(torch.float8_e4m3fn), requires_grad=False),
        "fp8 rows": values.view(4, 6).to(torch.float8_e4m3fn)[1:],
        "codes": torch.arange(-5, 5, dtype=torch.int8),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "one": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
        "scaled": torch.zeros(1, 5).expand(1, 5),
    }
    torch.save(weights, path := tmp_path / "x.pth", pickle_protocol=protocol)
    file = TorchFile(path)
    assert set(file.entries) == set(weights) - {"_extra_state"} and "_extra_state" in weights
    for name, entry in file.entries.items():
        expected = weights[name].detach().float().numpy()
        got = file.array(entry)
        np.testing.assert_array_equal(got.astype(np.float32), expected, err_msg=name)
        assert not got.flags.writeable and 0 <= entry.start <= entry.stop <= file.size
        file.announce(got)
        if got.size:
            file.release(got)
        np.testing.assert_array_equal(file.array(entry).astype(np.float32), expected)
    starts = [entry.start for entry in file.entries.values()]
    assert starts == sorted(starts)


def test_an_archive_made_by_hand(tmp_path: Path) -> None:
    """The helpers of this test write what torch reads, so that what they spoil is spoilt on purpose."""
    path = written(tmp_path / "x.pth", archive_of(ARRAY))
    np.testing.assert_array_equal(torch.load(path, weights_only=True)["a"].numpy(), ARRAY["a"])
    file = TorchFile(path)
    np.testing.assert_array_equal(file.array(file.entries["a"]), ARRAY["a"])


class Evil:
    """Runs a program when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [(os.system, "touch {}"), (eval, "open({!r}, 'w')"), (exec, "open({!r}, 'w')"), (getattr, "x")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_programs_are_refused_and_not_run(
    tmp_path: Path, protocol: int, function: Callable[..., Any], arguments: str
) -> None:
    mark = tmp_path / "was here"
    evil = Evil(function, arguments.format(str(mark)))
    for value in ({"a": evil}, evil, OrderedDict(a=evil), [evil]):
        data = pack_archive({"data.pkl": pickle.dumps(value, protocol)})
        message = refused(data, tmp_path, "nothing of it was executed")
        if protocol >= 2 and isinstance(value, Evil):
            assert function.__name__ in message
    assert not mark.exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Word("os", "system"), "'os.system'"),
        (Call("builtins", "eval", "1"), "'builtins.eval'"),
        (Call("torch", "load", "x"), "'torch.load'"),
        (Call("torch._utils", "_rebuild_sparse_tensor", ()), "_rebuild_sparse_tensor"),
        (Call("torch", "FloatStorage"), "'torch.FloatStorage'"),
        (Call("collections", "OrderedDict", ("a", 1)), "OrderedDict"),
        (Call("_codecs", "encode", 1, 2), "_codecs.encode"),
        (Call("torch._utils", "_rebuild_parameter", 1, False, {}), "_rebuild_parameter"),
        (Call("torch._utils", "_rebuild_tensor_v2", 1, 0, (1,), (1,), False, {}), "_rebuild_tensor_v2"),
        (Outside("storage", Word("_io", "BytesIO"), "0", "cpu", 1), "no storage"),
        (Outside("module", Word("torch", "FloatStorage"), "0", "cpu", 1), "no storage"),
        ({"a": 1}, "'a' is no tensor (int)"),
        ({"model": {"a": 1}}, "'model' is no tensor (dict)"),
        ({"a": Word("torch", "FloatStorage")}, "'a' is no tensor (name)"),
        ((), "no state dict"),
        ({1: 2}, "not names"),
        ({"a": tensor("0", 12, (3, 4), (4, 1), 1)}, "ends beyond its storage"),
        ({"a": tensor("0", 12, (3, 5), (4, 1))}, "overlap"),
        ({"a": tensor("0", 12, (3, 4), (0, 1))}, "overlap"),
        ({"a": tensor("0", 12, (3, 4), (5, 1))}, "ends beyond its storage"),
        ({"a": tensor("0", 12, (2**62, 2**62), (2**62, 1))}, "ends beyond its storage"),
        ({"a": tensor("0", 12, (3, 4), (4,))}, "impossible"),
        ({"a": tensor("0", 12, (3, -4), (4, 1))}, "impossible"),
        ({"a": tensor("0", 12, (3, 4), (4, 1), -1)}, "impossible"),
        ({"a": tensor("0", 13, (3, 4), (4, 1))}, "should have 13 elements"),
        ({"a": tensor("0", 12, (3, 4), (4, 1), 0, "HalfStorage")}, "should have 12 elements"),
        ({"a": tensor("1", 12, (3, 4), (4, 1))}, "storage '1' is missing"),
        ({"a": tensor("../data/0", 12, (3, 4), (4, 1))}, "is missing"),
        ({"a\x1b[2J": tensor("0", 12, (3, 4), (4, 1))}, "cannot be printed"),
    ],
)
def test_what_no_state_dict_needs(tmp_path: Path, value: Any, words: str) -> None:
    data = pack_archive({"data.pkl": pickled(value), "data/0": bytes(48)})
    refused(data, tmp_path, words)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"\x80\x02cos\nsystem\n.", "'os.system'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "'os.system'"),
        (b"\x80\x02(i__main__\nx\n.", "INST"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02Pname\n.", "PERSID"),
        (b"\x80\x02\x92.", "NEWOBJ_EX"),
        (b"\x80\x02\xff.", "0xff"),
        (b"\x80\x02}", "truncated"),
        (b"\x80\x02}X\xff\xff\xff\x7f", "truncated"),
        (b"\x80\x02}}.", "left over"),
        (b"\x80\x02}..", "left over"),
        (b"\x80\x02h\x05.", "recalls"),
        (b"\x80\x02}s.", "not there"),
        (b"\x80\x02}(}R.", "not there"),
        (b"\x80\x02u.", "mark"),
        (b"\x80\x02}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNu.", "'a' is there twice"),
        (b"\x80\x02}X\x01\x00\x00\x00\xff.", "UTF-8"),
        (b"\x80\x02\x8a\x09" + bytes(9) + b".", "8 bytes"),
        (b"\x80\x02c" + b"x" * 10**6, "without an end"),
        (b"\x80\x02" + b"}" * 250_001, "more than 250000 instructions"),
        (b"\x80\x02)" + b"\x85" * 200_000 + b".", "no state dict"),
        (b"\x80\x02}" + b"]" + b"q\x00" + b"h\x00a" * 1000 + b"0.", "POP"),
    ],
)
def test_damaged_programs(tmp_path: Path, program: bytes, words: str) -> None:
    refused(pack_archive({"data.pkl": program}), tmp_path, words)


def test_compressed_entries_and_other_archives(tmp_path: Path) -> None:
    """A bomb is refused before a byte of it is unpacked."""
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**8))
    assert len(bomb.getvalue()) < 10**6
    refused(bomb.getvalue(), tmp_path, "'x/data.pkl' is compressed")
    entries = unpack_archive(archive_of(ARRAY))
    refused(pack_archive({**entries, "byteorder": b"big"}), tmp_path, "not little-endian")
    refused(pack_archive({"data/0": b""}), tmp_path, "not of torch.save")
    two = io.BytesIO()
    with zipfile.ZipFile(two, "w") as archive:
        archive.writestr("x/data.pkl", pickled({}))
        archive.writestr("y/data.pkl", pickled({}))
    refused(two.getvalue(), tmp_path, "no one folder")
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = io.BytesIO()
        with zipfile.ZipFile(twice, "w") as archive:
            archive.writestr("x/data.pkl", pickled({}))
            archive.writestr("x/data.pkl", pickled({}))
    refused(twice.getvalue(), tmp_path, "'x/data.pkl' is there twice")


def test_other_files(tmp_path: Path) -> None:
    refused(b"", tmp_path, "no file of torch.save")
    refused(b"version https://git-lfs.github.com/spec/v1\n", tmp_path, "Git LFS pointer")
    refused(pickle.dumps({}, 2), tmp_path, "pickle")
    refused(b"PK\3\4" + bytes(200), tmp_path, "does not end as a zip archive")
    torch.save({"a": torch.zeros(3)}, old := tmp_path / "old", _use_new_zipfile_serialization=False)
    refused(old.read_bytes(), tmp_path, "pickle")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are opened without waiting for the clock's tick, which thousands of them would take minutes for."""
    monkeypatch.setattr("l4export.storage.opened_file._settle", lambda status: None)


def test_every_cut_is_refused(tmp_path: Path, at_once: None) -> None:
    data = archive_of(ARRAY)
    for length in range(len(data)):
        refused(data[:length], tmp_path)
    refused(data + b"\0", tmp_path, "does not end as a zip archive")


def test_every_changed_byte_is_refused_or_harmless(tmp_path: Path, at_once: None) -> None:
    """Whatever is still read lies within its file, and every error is one of l4export's."""
    data, accepted = archive_of(ARRAY), 0
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        try:
            file = TorchFile(written(tmp_path / "x.pth", bytes(changed)))
        except L4Error:
            continue
        accepted += 1
        for entry in file.entries.values():
            assert 0 <= entry.start <= entry.stop <= file.size
            assert file.array(entry).shape == entry.shape
    assert 0 < accepted < len(data)  # bytes of weights, times, checksums


def test_overlapping_entries(tmp_path: Path) -> None:
    """Two headers of the directory that lead to one local header."""
    data = bytearray(pack_archive({"data.pkl": pickled({}), "data.pkx": pickled({})}))
    second = data.rindex(b"archive/data.pkx")
    data[second : second + 16] = b"archive/data.pkl"
    struct.pack_into("<I", data, second - 4, 0)
    refused(bytes(data), tmp_path, "there twice")
    data[second : second + 16] = b"archive/data.pkx"
    refused(bytes(data), tmp_path, "'archive/data.pkx' is not where the directory says")
    inside = pack_archive({"data.pkl": pickled({}), "x": pack_archive({"y": b"abc"}, "inner")[:60]})
    data = bytearray(inside)
    central = data.rindex(b"PK\1\2")
    nested = data.index(b"PK\3\4", data.index(b"archive/x"))
    data[central + 28] = len("inner/y")
    data[central + 46 : central + 46 + 9] = b"inner/y"
    struct.pack_into("<I", data, central + 42, nested)
    end = data.rindex(b"PK\5\6")
    struct.pack_into("<I", data, end + 12, struct.unpack_from("<I", data, end + 12)[0] - 2)
    refused(bytes(data), tmp_path)


def test_a_file_that_shrinks_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pth", archive_of({"a": np.ones(10_000, np.float32)}))
    file = TorchFile(path)
    os.truncate(path, 20_000)
    with pytest.raises(InputError, match="shrank"):
        file.array(file.entries["a"])


def large_archive(path: Path, entries: dict[str, bytes | int]) -> None:
    """An archive with 64-bit sizes and offsets, where a number of bytes stands for a hole in a sparse file."""
    directory = b""
    with path.open("wb") as file:
        for name, content in entries.items():
            header, size = file.tell(), content if isinstance(content, int) else len(content)
            raw = f"archive/{name}".encode()
            file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0, 0, 0, 0, 0, 0, 0, len(raw), 0) + raw)
            if isinstance(content, int):
                file.seek(content, os.SEEK_CUR)
            else:
                file.write(content)
            extra = struct.pack("<HHQQQ", 1, 24, size, size, header)
            most = 2**32 - 1
            fields = (0, 0, 0, 0, 0, 0, 0, most, most, len(raw), len(extra), 0, 0, 0, 0, most)
            directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + raw + extra
        start, count = file.tell(), len(entries)
        end = start + len(directory)
        record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0, 45, 0, 0, count, count, len(directory), start)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
        last = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), 2**32 - 1, 0)
        file.write(directory + record + locator + last)


def test_more_than_four_gigabytes(tmp_path: Path) -> None:
    """As shards have them: sizes and offsets beyond 32 bits. torch reads the file too."""
    count, few = 5 * 2**29, np.arange(6, dtype=np.float16)
    described = {
        "hole": tensor("0", count, (5, 2**29), (2**29, 1), 0, "BFloat16Storage"),
        "few": tensor("1", 6, (2, 3), (3, 1), 0, "HalfStorage"),
    }
    large_archive(
        path := tmp_path / "x.pth",
        {"data.pkl": pickled(described), "data/0": 2 * count, "data/1": few.tobytes(), "version": b"3"},
    )
    assert path.stat().st_blocks < 1000
    file = TorchFile(path)
    assert file.entries["few"].start > 5 * 2**30 and file.array(file.entries["hole"]).shape == (5, 2**29)
    np.testing.assert_array_equal(file.array(file.entries["few"]), few.reshape(2, 3))
    np.testing.assert_array_equal(torch.load(path, weights_only=True, mmap=True)["few"].numpy(), few.reshape(2, 3))
