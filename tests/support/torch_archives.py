"""Files of torch.save, made and taken apart without torch, so that a test can put anything into them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

DTYPES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int8": "CharStorage"}


def unpack_archive(data: bytes) -> dict[str, bytes]:
    """The entries of an archive, by their names within its folder."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def pack_archive(entries: Mapping[str, bytes], folder: str = "archive") -> bytes:
    """An archive of stored entries, as torch.save makes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{folder}/{name}", content)
    return file.getvalue()


class Call:
    """An object whose pickle is a call of `module.name(*arguments)`."""

    def __init__(self, module: str, name: str, *arguments: Any) -> None:
        self.module, self.name, self.arguments = module, name, arguments


class Word:
    """An object whose pickle is the name `module.name` alone."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Outside:
    """An object whose pickle is a reference to what lies outside."""

    def __init__(self, *fields: Any) -> None:
        self.fields = fields


def pickled(value: Any) -> bytes:
    """A pickle of protocol 2 of plain values and of the objects above, which need not exist to be named."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value: Any) -> bytes:
    match value:
        case Word():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return _pickled(Word(value.module, value.name)) + _pickled(value.arguments) + b"R"
        case Outside():
            return _pickled(value.fields) + b"Q"
        case tuple():
            return b"(" + b"".join(map(_pickled, value)) + b"t"
        case dict():
            return b"}(" + b"".join(_pickled(key) + _pickled(each) for key, each in value.items()) + b"u"
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case _:
            return pickle.dumps(value, 2)[2:-1]


def tensor(
    key: str, numel: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, kind: str = "FloatStorage"
) -> Call:
    """A tensor of the storage `key`, as torch.save describes it."""
    storage = Outside("storage", Word("torch", kind), key, "cpu", numel)
    return Call("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, _no_hooks())


def _no_hooks() -> Call:
    return Call("collections", "OrderedDict")


def archive_of(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A state dict of contiguous arrays."""
    described, entries = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)
        described[name] = tensor(str(key), array.size, array.shape, strides, 0, DTYPES[array.dtype.name])
        entries[f"data/{key}"] = array.tobytes()
    return pack_archive({"data.pkl": pickled(described), "byteorder": b"little", **entries, "version": b"3\n"})
