"""Writes safetensors files in a stream: the header is known beforehand, the weights never all in memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from l4export.errors import StorageError
from l4export.storage.safetensors import DTYPE_BITS

__all__ = ["safetensors_header", "write_safetensors"]

Entry = tuple[str, str, tuple[int, ...]]
"""A tensor's name, dtype as in `DTYPE_BITS`, and shape."""

Chunk = bytes | bytearray | memoryview | np.ndarray


def safetensors_header(
    entries: Iterable[Entry], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """What precedes the bytes of tensors that follow one another, padded with spaces to 8 bytes, and their sizes in
    bytes by name.

    Raises `ValueError` for a name that is given twice.
    """
    sizes: dict[str, int] = {}
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    offset = 0
    for name, dtype, shape in entries:
        if name in header:
            raise ValueError(f"tensor name {name!r} is taken")
        sizes[name] = math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + sizes[name]]}
        offset += sizes[name]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, sizes


def write_safetensors(
    path: Path,
    entries: Iterable[Entry],
    chunks: Callable[[str], Iterable[Chunk] | None],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors, in order, as a new file at `path`.

    `chunks(name)` yields the tensor's bytes, row-major and little-endian, in contiguous pieces of any size; it is
    called when its turn comes, and one piece is held at a time. A tensor for which it gives None is left as a hole in
    a sparse file, which reads as zeros.
    Raises `StorageError` when writing fails and `ValueError` (a bug of the caller) for a name given twice or pieces
    that do not add up to the tensor. In both cases no file remains.
    """
    header, sizes = safetensors_header(entries, metadata)
    try:
        with path.open("xb") as file:
            try:
                file.write(header)
                for name, size in sizes.items():
                    if (pieces := chunks(name)) is None:
                        file.seek(size, os.SEEK_CUR)
                        continue
                    written = 0
                    for chunk in pieces:
                        piece = np.frombuffer(chunk, np.uint8) if not isinstance(chunk, np.ndarray) else chunk
                        written += file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
                    if written != size:
                        raise ValueError(f"tensor {name!r}: {written} bytes given, {size} expected")
                file.truncate()  # to where it stands: holes at the end count
            except BaseException:
                path.unlink()
                raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); check free space and permissions") from None
