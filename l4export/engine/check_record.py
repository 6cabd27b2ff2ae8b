"""What a check graph was fed at build, and what a CPU gave: the file beside it, which is untrusted as the rest.

A safetensors file with

    ids      int32 [n]        the tokens, as `CheckGraph.calls` are fed
    columns  int32 [m]        some of the vocabulary, in order
    sampled  float32 [p, m]   the logits of those, at every position of which logits are kept
    whole    float32 [2, V]   all logits, at the end of the first call and of the last
    features float16 [i, r, D]  of engines that see images: what stands at the image tokens, image by image
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.check_images import image_starts
from l4export.engine.manifest_types import CheckGraph, Manifest
from l4export.errors import InputError
from l4export.storage.safetensors import TensorFile
from l4export.storage.safetensors_writer import write_safetensors

__all__ = ["CHECK_RECORD", "CheckRecord", "read_record", "write_record"]

CHECK_RECORD = "check.safetensors"
"""The file's name in an engine."""

_DTYPES = {"ids": "I32", "columns": "I32", "sampled": "F32", "whole": "F32", "features": "F16"}


@dataclass(frozen=True)
class CheckRecord:
    """Tokens and logits; the arrays are those of the module's table."""

    ids: NDArray[np.int32]
    columns: NDArray[np.int32]
    sampled: NDArray[np.float32]
    whole: NDArray[np.float32]
    features: NDArray[np.float16] | None = None

    @classmethod
    def of(
        cls,
        check: CheckGraph,
        ids: NDArray[np.int32],
        logits: NDArray[np.float32],
        columns: NDArray[np.int32],
        features: NDArray[np.float16] | None = None,
    ) -> CheckRecord:
        """What is kept of the logits float32 [p, V] that the tokens gave."""
        return cls(ids, columns, logits[:, columns], logits[[check.calls[0] - 1, -1]], features)


def write_record(path: Path, record: CheckRecord) -> None:
    """Write a record; a file that is there is replaced. Raises `StorageError`."""
    arrays: Mapping[str, NDArray[Any]] = {name: array for name, array in vars(record).items() if array is not None}
    path.unlink(missing_ok=True)
    write_safetensors(
        path, [(name, _DTYPES[name], array.shape) for name, array in arrays.items()], lambda name: [arrays[name]]
    )


def read_record(path: Path, check: CheckGraph, decoder: Manifest) -> CheckRecord:
    """Read a record for a check graph, whose decoder has that manifest (`l4export.engine.check_decoder`).

    Raises:
        InputError: damaged, or a record of something else.
        StorageError: reading failed.
    """
    file = TensorFile(path)
    found = {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()}
    columns = found.get("columns", ("", (0,)))[1]
    kept = check.calls[0] + len(check.calls) - 1
    vocab = decoder.model.vocab_size
    shapes: dict[str, tuple[int, ...]] = {
        "ids": (sum(check.calls),),
        "columns": columns,
        "sampled": (kept, *columns),
        "whole": (2, vocab),
    }
    if decoder.vision is not None and (images := image_starts(check, decoder)):
        shapes["features"] = (len(images), decoder.vision.rows_per_tile, decoder.model.hidden_size)
    if (
        found != {name: (_DTYPES[name], shape) for name, shape in shapes.items()}
        or len(columns) != 1
        or columns == (0,)
    ):
        raise _damaged(path)
    record = CheckRecord(**{name: np.array(file.array(entry)) for name, entry in file.entries.items()})
    tokens = np.concatenate([record.ids, record.columns])
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise _damaged(path)
    return record


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: is not the record of this engine's check graph; build the engine again")
