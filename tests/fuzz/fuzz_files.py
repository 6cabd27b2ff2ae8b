"""Files that are not what they should be, and safetensors files whose header and bytes disagree."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fuzz_json import Pairs, Raw, damaged_text, dumps, mutate_json

__all__ = [
    "WIDTHS",
    "Files",
    "Pieces",
    "change_tensor",
    "mutate_safetensors",
    "pack",
    "pack_pieces",
    "pieces_of",
    "read_files",
    "replace_file",
    "small_file",
    "spoil_numbers",
    "unpack",
    "write_changed",
    "write_files",
]

Files = dict[str, bytes]
"""The regular files of a directory by their names."""

Pieces = dict[str, tuple[dict[str, Any], bytes]]
"""The tensors of a safetensors file: entry of the header, whose offsets do not count, and bytes."""

_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 216000000000\n"
_DTYPES = ["F32", "F16", "BF16", "F64", "I8", "U8", "F8_E4M3", "F4", "I64", "BOOL", "f32", "F128", "F8_E8M0", "C64"]
_SMALL = 2**26
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "F64": 8}
WIDTHS = _WIDTHS | {"F8_E4M3": 1, "F8_E5M2": 1, "I32": 4, "I64": 8}
"""Bytes of an element."""


def read_files(directory: Path) -> Files:
    """All files of a directory."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write them into a new directory."""
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)


def write_changed(
    path: Path, files: Files, change: Callable[[Files, random.Random], str], rng: random.Random, whole: bool
) -> list[str]:
    """Write the files into a new directory, changed one to three times, and with `whole` now and then one of them
    replaced by what is no edit of its text; says what was done."""
    files, told = dict(files), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        told.append(change(files, rng))
    write_files(path, files)
    if whole and rng.random() < 0.05:
        told.append(replace_file(path / rng.choice(sorted(files)), rng))
    return told


def small_file(path: Path) -> bytes:
    """What a regular file holds; nothing of links, of whatever else an earlier change has made, and of huge files."""
    state = path.lstat() if os.path.lexists(path) else None
    return path.read_bytes() if state and stat.S_ISREG(state.st_mode) and state.st_size <= _SMALL else b""


def replace_file(path: Path, rng: random.Random) -> str:
    """Do something to a file, or to its name, that is no edit of its text; says what."""
    data = small_file(path)
    way = rng.choice([*_EDITS, *_TARGETS, *_KINDS])
    if way in _EDITS and data:
        return f"{path.name}: {_edit(path, data, way, rng)}"
    if path.is_dir() and not path.is_symlink():
        return f"{path.name}: left alone"
    path.unlink(missing_ok=True)
    if way in _TARGETS:
        path.symlink_to(_TARGETS[way])
    elif way in _KINDS:
        _KINDS[way](path, data)
    return f"{path.name}: {way}"


_EDITS = ("cut", "changed", "grown", "sparse")
_TARGETS = {"zero": "/dev/zero", "null": "/dev/null", "full": "/dev/full", "tty": "/dev/tty", "self": "/proc/self/mem"}


def _directory(path: Path, data: bytes) -> None:
    path.mkdir()
    (path / "x").write_bytes(data[:100])


def _socket(path: Path, _: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def _link(path: Path, data: bytes) -> None:
    """As in the cache of the hub: nothing is wrong with it."""
    path.parent.with_name("blob").write_bytes(data)
    path.symlink_to("../blob")


_KINDS: dict[str, Callable[[Path, bytes], object]] = {
    "removed": lambda path, data: None,
    "emptied": lambda path, data: path.write_bytes(b""),
    "pointer": lambda path, data: path.write_bytes(_POINTER),
    "hidden": lambda path, data: path.with_name(f".{path.name}").write_bytes(data),
    "directory": _directory,
    "fifo": lambda path, data: os.mkfifo(path),
    "socket": _socket,
    "loop": lambda path, data: path.symlink_to(path.name),
    "dangling": lambda path, data: path.symlink_to("nothing"),
    "sibling": lambda path, data: path.symlink_to(next(iter(sorted(os.listdir(path.parent))), "nothing")),
    "link": _link,
}


def _edit(path: Path, data: bytes, way: str, rng: random.Random) -> str:
    if way == "cut":
        path.write_bytes(data[: rng.choice([rng.randrange(len(data)), len(data) - 1])])
    elif way == "grown":
        path.write_bytes(data + rng.choice([b"\0", b"\0" * 4096, data, b"\n"]))
    elif way == "changed":
        edited = bytearray(data)
        for _ in range(rng.choice([1, 1, 10, 1000])):
            edited[rng.randrange(len(edited))] ^= 1 << rng.randrange(8)
        path.write_bytes(edited)
    else:
        os.truncate(path, rng.choice([2**20, 2**27, 2**32 + 1, 2**40]) if rng.random() < 0.2 else len(data) + 65536)
    return way


def pack(header: Any, data: bytes) -> bytes:
    """The bytes of a safetensors file; the header is JSON as `dumps` takes it, or its bytes."""
    text = header if isinstance(header, bytes) else dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def unpack(file: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and bytes of a valid file."""
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def pieces_of(file: bytes) -> Pieces:
    """The tensors of a valid file."""
    header, data = unpack(file)
    return {
        name: (entry, data[slice(*entry["data_offsets"])]) for name, entry in header.items() if name != "__metadata__"
    }


def pack_pieces(pieces: Pieces) -> bytes:
    """The file that has these tensors, in order."""
    header, end = {}, 0
    for name, (entry, piece) in pieces.items():
        header[name] = {**entry, "data_offsets": [end, end + len(piece)]}
        end += len(piece)
    return pack(header, b"".join(piece for _, piece in pieces.values()))


def change_tensor(pieces: Pieces, name: str, other: str, rng: random.Random) -> str:
    """Make a tensor missing, another one's, or of another shape or dtype; says which."""
    entry, data = pieces[name]
    way = rng.choice(["missing", "copied", "exchanged", "shape", "dtype"])
    if way == "missing":
        del pieces[name]
        return way
    if way == "copied":
        pieces[name] = pieces[other]
        return f"that of {other}"
    if way == "exchanged":
        pieces[name], pieces[other] = pieces[other], pieces[name]
        return f"exchanged with {other}"
    shape, dtype = entry["shape"], entry["dtype"]
    if way == "dtype":
        dtype = rng.choice(sorted(WIDTHS))
    else:
        shape = rng.choice([shape[::-1], [*shape, 1], [1, *shape], [int(np.prod(shape))], [*shape, 0], [], shape[:1]])
    size = int(np.prod(shape)) * WIDTHS.get(dtype, 1)
    pieces[name] = ({**entry, "dtype": dtype, "shape": shape}, (data * 8 + bytes(size))[:size])
    return f"{dtype} {shape}"


def spoil_numbers(header: Mapping[str, Any], data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The data with some numbers of one tensor replaced by hostile ones."""
    name = rng.choice([name for name in header if name != "__metadata__"])
    dtype, (start, stop) = header[name]["dtype"], header[name]["data_offsets"]
    array = bytearray(data)
    if dtype == "F32":
        values = np.frombuffer(array, np.float32, (stop - start) // 4, start)
        spoiled = rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 1e30, 0.0])
        step = rng.choice([1, 7, max(1, len(values))])
        values[rng.randrange(max(1, min(step, len(values)))) :: step] = spoiled
        return bytes(array), f"{name}: {spoiled} every {step}"
    array[start:stop] = rng.randbytes(stop - start)
    return bytes(array), f"{name}: random bytes"


def mutate_safetensors(file: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A changed file; `file` must be a valid one. Returns what was changed, too."""
    header, data = unpack(file)
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    way = rng.randrange(10)
    if way <= 1:
        data, told = spoil_numbers(header, data, rng)
        return pack(header, data), told
    if way == 2:
        text, told = damaged_text(dumps(header), rng)
        return pack(text, data), f"header: {told}"
    if way == 3:
        length = rng.choice([0, 1, 7, len(file), len(file) - 8, 2**32, 2**63, 2**64 - 1, len(dumps(header)) + 1])
        return length.to_bytes(8, "little") + file[8:], f"header of {length} bytes"
    if way == 4:
        return pack(*_retyped(header, data, name, rng.choice(sorted(_WIDTHS)))), f"{name} of another dtype"
    if way == 5:
        return pack(Pairs([*header.items(), (name, header[other])]), data), f"{name} twice"
    if way == 6:
        return pack(dumps(header).encode() + b" " * rng.choice([1, 7, 10**6]), data), "header with spaces"
    if way == 7:
        return pack(header, data), _add_entries(header, len(data), rng)
    if way == 8:
        return pack(header, data), _move(header, name, other, rng)
    changed, told = mutate_json(header, rng, [*_DTYPES, Raw("[0, 0]"), [0, len(data)], [len(data), 0]])
    return pack(changed, data), f"header: {told}"


def _add_entries(header: dict[str, Any], end: int, rng: random.Random) -> str:
    """More tensors without bytes, or other metadata."""
    if rng.random() < 0.5:
        count = rng.choice([300, 5000])
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        header |= {f"model.more.{index}": empty for index in range(count)}
        return f"{count} more tensors"
    header["__metadata__"] = rng.choice([None, [], {"a": 1}, {"a": None}, {"format": "pt"}, "x", {"a": "b" * 10**6}])
    return "other metadata"


def _move(header: dict[str, Any], name: str, other: str, rng: random.Random) -> str:
    """Other offsets, another shape or another name."""
    way = rng.randrange(4)
    entry = header[name]
    if way == 0:
        entry["data_offsets"], header[other]["data_offsets"] = header[other]["data_offsets"], entry["data_offsets"]
        return f"offsets of {name} and {other} exchanged"
    if way == 1:
        move = rng.choice([-1, 1, 4, -4, 2**40, -(2**40), 2**63])
        for end in rng.choice([[0], [1], [0, 1]]):
            entry["data_offsets"][end] += move
        return f"offsets of {name} moved by {move}"
    if way == 2:
        shape = entry["shape"]
        entry["shape"] = rng.choice([shape[::-1], [*shape, 1], [1, *shape], [int(np.prod(shape))], [*shape, 0], []])
        return f"{name}: shape {entry['shape']}"
    header[rng.choice(["x", f"{name}_", "", "\0", "\x1b[2J", "a\nb", "\ud800", "é" * 300, "../x"])] = header.pop(name)
    return f"{name} renamed"


def _retyped(header: dict[str, Any], data: bytes, name: str, dtype: str) -> tuple[dict[str, Any], bytes]:
    """The same tensors, one with a dtype of another width, and offsets that are right for it."""
    pieces, end, made = [], 0, {}
    for other, entry in header.items():
        if other == "__metadata__":
            continue
        piece = data[slice(*entry["data_offsets"])]
        if other == name:
            piece = bytes(int(np.prod(entry["shape"])) * _WIDTHS[dtype])
        made[other] = {**entry, "data_offsets": [end, end + len(piece)]}
        if other == name:
            made[other]["dtype"] = dtype
        end += len(piece)
        pieces.append(piece)
    return made, b"".join(pieces)
