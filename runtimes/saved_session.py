"""Sessions in a file: one safetensors file with the slots that are used, and what makes them usable.

Tensors are called `{row}.ids`, int64 [tokens], those of all rows first; then `{row}.{layer}.key` and `.value`,
[kv_heads, tokens, width]. The metadata hold
`format`; `engine`, the SHA-256 of the manifest; `state`, JSON of a `SessionState`; and `sha256`, the digest of the
state and of all tensors' bytes in their order. A file is untrusted: nothing in it is used
before all of this has been checked.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest
from l4export.errors import InputError, StorageError
from l4export.runtimes.cache.chunks import Chunks
from l4export.runtimes.cache.kv_cache import CacheSpec
from l4export.runtimes.session_state import PlacedImage, SessionState
from l4export.runtimes.token_history import TokenHistory
from l4export.storage.safetensors import ARRAY_DTYPES, TensorFile, parse_json_object
from l4export.storage.safetensors_writer import write_safetensors

__all__ = ["read_session", "write_session"]

_FORMAT = "l4export-session-3"
_ROWS = ("lengths", "starts", "held")
_DIGEST = re.compile("[0-9a-f]{64}")
_NO_COUNT = 2**48
"""More tokens than there can be."""
_DTYPE_NAMES = {dtype: name for name, dtype in ARRAY_DTYPES.items()}
_IDS = _DTYPE_NAMES[np.dtype(np.int64)]


def write_session(path: Path, manifest: Manifest, state: SessionState, rows: Sequence[Sequence[NDArray[Any]]]) -> None:
    """Write a session, its state and each row's tokens, to `path`; a file there is replaced in one step at the end.

    Raises:
        StorageError: writing failed; a file that was there is as before.
    """
    spec = CacheSpec.of(manifest)
    tensors = {f"{row}.ids": history.ids for row, history in enumerate(state.ids)}
    tensors |= {
        f"{row}.{name}": array
        for row, tokens in enumerate(rows)
        for name, array in zip(spec.names, tokens, strict=True)
    }
    text = _state_json(state)
    metadata = {"format": _FORMAT, "engine": manifest.sha256, "state": text}
    metadata["sha256"] = _digest(text, tensors.values())
    entries = [(name, _DTYPE_NAMES[array.dtype], array.shape) for name, array in tensors.items()]
    # Not by the process's number: in a container that is the same after every restart.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        write_safetensors(partial, entries, lambda name: tensors[name], metadata)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written ({error.strerror}); check the path and permissions") from error


def read_session(path: Path, manifest: Manifest) -> tuple[SessionState, list[list[NDArray[Any]]]]:
    """State and each row's tokens as they were saved; see `Engine.load_session`."""
    file, spec = TensorFile(path), CacheSpec.of(manifest)
    if file.metadata.get("format") != _FORMAT:
        raise InputError(f"{path}: not a session that this version of l4export has saved")
    if file.metadata.get("engine") != manifest.sha256:
        raise InputError(f"{path}: saved with another engine; load it with that one, or feed the prompt anew")
    text = file.metadata.get("state", "")
    state, shapes = _state(text, manifest, spec, path)
    due: list[tuple[str, str, tuple[int, ...]]]
    due = [(f"{row}.ids", _IDS, (int(length),)) for row, length in enumerate(state.lengths)]
    due += [
        (f"{row}.{name}", _DTYPE_NAMES[spec.dtype], shape)
        for row, of_row in enumerate(shapes)
        for name, shape in zip(spec.names, of_row, strict=True)
    ]
    found = [(entry.name, entry.dtype, entry.shape) for entry in file.entries.values()]
    if found != due:
        raise _damaged(path, "it does not hold the keys and values of its tokens")
    arrays = [file.array(entry) for entry in file.entries.values()]
    if _digest(text, arrays) != file.metadata.get("sha256"):
        raise _damaged(path, "its digest differs")
    ids, arrays = arrays[: len(shapes)], arrays[len(shapes) :]
    if any(row.size and not (row.min() >= 0 and row.max() < manifest.model.vocab_size) for row in ids):
        raise _damaged(path, "it has ids of no tokens")
    tokens = [arrays[at : at + len(spec.names)] for at in range(0, len(arrays), len(spec.names))]
    return replace(state, ids=tuple(map(TokenHistory, ids))), tokens


def _state(
    text: str, manifest: Manifest, spec: CacheSpec, path: Path
) -> tuple[SessionState, list[list[tuple[int, int, int]]]]:
    """A state that a session of this engine can be in, without its ids, and the shapes of what each row holds then."""
    raw = parse_json_object(text.encode(errors="surrogatepass"), f"{path}: state")
    rows = [raw[name] if isinstance(raw.get(name), list) else [] for name in _ROWS]
    numbers = [raw.get("capacity"), *itertools.chain(*rows)]
    if (
        raw.keys() != {"capacity", "images", *_ROWS}
        or not rows[0]
        or len({len(row) for row in rows}) != 1
        or any(type(number) is not int or not 0 <= number < _NO_COUNT for number in numbers)
    ):
        raise _damaged(path, "its state is not that of a session")
    lengths, starts, held = (np.asarray(numbers, dtype=np.int64) for numbers in rows)
    ends, chunks = starts + lengths, Chunks(manifest.prefill_cut, starts, held)
    if (
        not 1 <= raw["capacity"] <= manifest.max_context
        or lengths.max() > raw["capacity"]
        or starts.max() >= manifest.max_context
        or ends.max() > manifest.max_context
        or not all(chunks.complete(row, int(end)) for row, end in enumerate(ends))
    ):
        raise _damaged(path, "its state does not fit this engine")
    images = _images(raw["images"], rows[0], path)
    if any(images) and manifest.vision is None:
        raise _damaged(path, "it has images, and its engine sees none")
    shapes = [spec.shapes(int(lengths[row]), chunks.used(row, int(end))) for row, end in enumerate(ends)]
    return SessionState(raw["capacity"], lengths, starts, held, images, ()), shapes


def _images(raw: Any, lengths: Sequence[int], path: Path) -> tuple[tuple[PlacedImage, ...], ...]:
    """Of each row; they lie within its tokens and one behind the other."""
    if not isinstance(raw, list) or len(raw) != len(lengths) or not all(isinstance(row, list) for row in raw):
        raise _damaged(path, "its images are not those of its rows")
    for row, length in zip(raw, lengths, strict=True):
        at = 0
        for image in row:
            match image:
                case [start, stop, str(digest)] if (
                    type(start) is type(stop) is int and at <= start < stop <= length and _DIGEST.fullmatch(digest)
                ):
                    at = stop
                case _:
                    raise _damaged(path, "an image is not one of its tokens")
    return tuple(tuple(PlacedImage(*image) for image in row) for row in raw)


def _state_json(state: SessionState) -> str:
    rows = {name: getattr(state, name).tolist() for name in _ROWS}
    images = [[[image.start, image.stop, image.digest] for image in row] for row in state.images]
    return json.dumps({"capacity": state.capacity, **rows, "images": images})


def _digest(state: str, arrays: Iterable[NDArray[Any]]) -> str:
    digest = hashlib.sha256(state.encode())
    for array in arrays:
        for part in array if array.ndim > 1 else [array]:
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: damaged: {why}; feed the prompt anew")
