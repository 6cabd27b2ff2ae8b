"""Reads safetensors files: header first, weights only as views of a memory map.

The format [github.com/huggingface/safetensors, README "Format"]: 8 bytes little-endian header length N; N bytes of
UTF-8 JSON that start with "{" and may end with spaces; then the tensors' bytes, row-major and little-endian. The JSON
maps each name to {"dtype", "shape", "data_offsets": [start, stop]}, offsets counted from the end of the header; the
key "__metadata__" maps strings to strings. No key appears twice; tensors cover the rest of the file without gaps or
overlaps. A file is untrusted: all of that is checked before anything is allocated for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from l4export.errors import InputError, printable
from l4export.storage.foreign_files import foreign_kind
from l4export.storage.mapped_tensors import ARRAY_DTYPES, HANDLED_DTYPES, MappedTensors, TensorEntry
from l4export.storage.opened_file import OpenedFile

__all__ = [
    "ARRAY_DTYPES",
    "DTYPE_BITS",
    "HANDLED_DTYPES",
    "TensorEntry",
    "TensorFile",
    "parse_json_object",
    "read_header",
]

DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits of an element, for every dtype of the format."""

_MAX_HEADER = 64 * 2**20  # bytes, enough for 400,000 tensors; as text and strings of Python it may take nine times that
_MAX_RANK = 32
_MAX_JSON_MARKS = 1_000_000
"""Commas, colons and opening brackets of a JSON document. An entry of a header has ten, so this is 100,000 tensors."""
_MAX_JSON_DEPTH = 64
_TOO_DEEP = "{}: JSON is nested too deeply; is this the right file?"
_HINT = "; download or convert the file again"


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse strict JSON: UTF-8, an object, no key twice, no NaN or Infinity, and few enough values.

    A value of two bytes of text can take a hundred bytes in Python, so values are counted before they are made: at most
    1,000,000 commas, colons and opening brackets, 64 levels deep.

    Raises:
        InputError: anything else; the message begins with `where`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key appears twice in an object")
        return found

    def constant(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    if (marks := sum(map(data.count, (b",", b":", b"[", b"{")))) > _MAX_JSON_MARKS:
        raise InputError(f"{where}: JSON of about {marks} values; at most {_MAX_JSON_MARKS} are read")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise InputError(_TOO_DEEP.format(where)) from None
    except ValueError as error:  # bad UTF-8, bad JSON, an integer of thousands of digits
        if kind := foreign_kind(data):
            raise InputError(f"{where}: {kind}") from None
        reason = "bad UTF-8" if isinstance(error, UnicodeDecodeError) else printable(str(error))[:100]
        raise InputError(f"{where}: not valid JSON ({reason}); is the file complete?") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object; is this the right file?")
    if _depth(value) > _MAX_JSON_DEPTH:
        raise InputError(_TOO_DEEP.format(where))
    return value


def _depth(value: Any) -> int:
    """Levels of objects and arrays, up to one more than are allowed."""
    level, depth = [value], 0
    while level and depth <= _MAX_JSON_DEPTH:
        items = (item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
        level = [item for item in items if isinstance(item, dict | list)]
        depth += 1
    return depth


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file by name, in the order of their bytes; raises `InputError` or `StorageError`."""
    file = OpenedFile(path)
    return _read_header(file)[0]


class TensorFile(MappedTensors):
    """A safetensors file, mapped into memory read-only.

    Attributes:
        metadata: The header's strings.
    """

    def __init__(self, path: Path) -> None:
        opened = OpenedFile(path)
        entries, self.metadata = _read_header(opened)
        super().__init__(opened, entries)


def _read_header(file: OpenedFile) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Tensors and metadata."""
    path, size = file.path, file.size
    if size < 8:
        raise InputError(f"{path}: truncated: {size} bytes, a safetensors file has at least 8{_HINT}")
    length = int.from_bytes(file.read_at(0, 8), "little")
    if 8 + length > size and (kind := foreign_kind(file.read_at(0, min(size, 64)))):
        raise InputError(f"{path}: {kind}")
    if length > _MAX_HEADER:
        raise InputError(f"{path}: header of {length} bytes; at most {_MAX_HEADER} are read{_HINT}")
    if 8 + length > size:
        raise InputError(f"{path}: truncated: header describes {8 + length} bytes, file has {size}{_HINT}")
    text = file.read_at(8, length)
    if not text.startswith(b"{"):
        raise InputError(f"{path}: header does not start with '{{'; not a safetensors file{_HINT}")
    header = parse_json_object(text, f"{path}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: __metadata__ must map strings to strings{_HINT}")
    entries = [_entry(name, value, 8 + length, path) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    end = 8 + length
    for entry in entries:
        if entry.start != end:
            problem = "overlaps" if entry.start < end else "leaves a gap after"
            raise InputError(f"{path}: tensor {entry.name!r} {problem} the bytes before it{_HINT}")
        end = entry.stop
    if end > size:
        raise InputError(f"{path}: truncated: header describes {end} bytes, file has {size}{_HINT}")
    if end < size:
        raise InputError(f"{path}: {size - end} bytes after the last tensor; header describes {end}{_HINT}")
    return {entry.name: entry for entry in entries}, metadata


def _entry(name: str, value: object, base: int, path: Path) -> TensorEntry:
    """One checked entry of the header; `base` is where the tensors' bytes begin."""

    def refuse(problem: str) -> InputError:
        return InputError(f"{path}: tensor {name[:200]!r}: {problem}{_HINT}")

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise refuse("expected an object with dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise refuse(f"unknown dtype {str(dtype)[:40]!r}")
    for field, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise refuse(f"{field} must be an array of integers from 0 to 2**63 - 1")
    if len(shape) > _MAX_RANK or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"expected at most {_MAX_RANK} dimensions and data_offsets [start, stop]")
    bits = DTYPE_BITS[dtype]
    for size in shape:  # at most 32 factors below 2**63: exact and small in Python's integers
        bits *= size
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        raise refuse(f"{dtype} {shape} takes {bits // 8} bytes, data_offsets span {offsets[1] - offsets[0]}")
    return TensorEntry(name, dtype, tuple(shape), base + offsets[0], base + offsets[1])
