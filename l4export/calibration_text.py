"""The tokens that a calibration runs the model over."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l4export.errors import InputError, StorageError

__all__ = ["FEWEST_TOKENS", "MOST_TOKENS", "CalibrationText", "read_calibration_text"]

FEWEST_TOKENS = 64
"""With fewer, most channels have not shown what they can reach."""

MOST_TOKENS = 4096
"""What follows them is not read: more text costs time and moves no scale by much."""

_DEFAULT = Path(__file__).with_name("calibration.txt")
_RANDOM = "random token ids, seed 0"
_MOST_BYTES = 64 << 20
_TOKEN_IDS = re.compile(r"[\d\s,\[\]]*", re.ASCII)


@dataclass(frozen=True)
class CalibrationText:
    """Token ids, and what a manifest says of them: the text's name, its sha256, the number of tokens."""

    token_ids: tuple[int, ...]
    record: dict[str, Any]


def read_calibration_text(checkpoint: Path, vocab_size: int, path: Path | None) -> CalibrationText:
    """The first `MOST_TOKENS` tokens of a file, or of a default.

    Args:
        checkpoint: Directory whose tokenizer.json turns text into tokens.
        vocab_size: Every token id must be below it.
        path: Plain text in UTF-8, or token ids: whole numbers with spaces, line ends, commas or brackets between them.
            None: a short text of many kinds that comes with l4export; without a tokenizer, seeded random token ids.

    Raises:
        InputError: a file that is missing, too large, not UTF-8 or too short; ids out of range; text without a
            tokenizer.
        EnvironmentLacks: the package tokenizers is missing.
        StorageError: the file cannot be read.
    """
    from l4export.runtimes.text import TextCodec

    codec = TextCodec.open(checkpoint)
    if path is None and codec is None:
        ids = np.random.default_rng(0).integers(0, vocab_size, MOST_TOKENS).tolist()
        return CalibrationText(tuple(ids), {"text": _RANDOM, "tokens": len(ids)})
    data = _read(path or _DEFAULT)
    where = f"--calibrate {path}" if path else "the default calibration text"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start} is not UTF-8; give plain text or token ids") from None
    if _TOKEN_IDS.fullmatch(text):
        ids = [int(number) for number in re.findall(r"\d{1,18}", text)]
    elif codec is None:
        raise InputError(f"{where}: {checkpoint} has no tokenizer.json to read text with; give token ids")
    else:
        ids = codec.encode(text)
    ids = _checked(ids[:MOST_TOKENS], vocab_size, where)
    record = {"text": (path or _DEFAULT).name, "sha256": hashlib.sha256(data).hexdigest(), "tokens": len(ids)}
    return CalibrationText(tuple(ids), record)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"--calibrate {path}: larger than {_MOST_BYTES >> 20} MiB; give a shorter text")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"--calibrate {path}: no such file") from None
    except OSError as error:
        raise StorageError(f"--calibrate {path}: {error.strerror}; give a readable file") from error


def _checked(ids: Sequence[int], vocab_size: int, where: str) -> Sequence[int]:
    if len(ids) < FEWEST_TOKENS:
        raise InputError(f"{where}: {len(ids)} tokens are too few; give at least {FEWEST_TOKENS}")
    if (worst := max(ids)) >= vocab_size:
        raise InputError(f"{where}: token id {worst} is outside the vocabulary (0 to {vocab_size - 1})")
    return ids
