"""Text to calibrate on: plain text, which the checkpoint's tokenizer cuts up, or token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4export.config import ModelConfig
from l4export.errors import InputError, StorageError

__all__ = ["DEFAULT_TEXT", "CalibrationText", "read_calibration_text"]

DEFAULT_TEXT = Path(__file__).parent / "calibration_text.txt"
"""Chapters of the King James Bible (1611), which is in the public domain."""

_LONGEST = 2048
"""Tokens of one sequence; longer documents are cut."""

_LEAST = 128
"""Tokens below which second moments say nothing."""

_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class CalibrationText:
    """Token sequences of at most 2048 ids each."""

    sequences: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """How many there are in all."""
        return sum(map(len, self.sequences))

    def to_dict(self) -> dict[str, Any]:
        """For manifests: what was calibrated on, and its digest (sha256 of the ids as JSON)."""
        digest = hashlib.sha256(json.dumps(self.sequences).encode()).hexdigest()
        return {"sha256": digest, "sequences": len(self.sequences), "tokens": self.tokens}


def read_calibration_text(path: Path, checkpoint: Path, config: ModelConfig) -> CalibrationText:
    """Read a file, or all .txt and .json files of a directory in the order of their names.

    A .json file holds token ids, as a list or as a list of lists, one for each document; any other file is one document
    of UTF-8 text. Documents longer than 2048 tokens are cut, and if the tokenizer puts a begin-of-text token before a
    document, every piece has it.

    Raises:
        InputError: no such file, nothing in it, not UTF-8 or JSON, ids out of range, too few tokens, no tokenizer.
        EnvironmentLacks: text, and the package tokenizers is not installed.
        StorageError: a file cannot be read.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".txt", ".json"))
        if not files:
            raise InputError(f"{path}: holds no .txt or .json file; give a text, or token ids as JSON")
    documents = [ids for file in files for ids in _documents(file, checkpoint)]
    for ids in documents:
        if bad := [token for token in ids if not 0 <= token < config.vocab_size]:
            raise InputError(
                f"{path}: token id {bad[0]} is outside the vocabulary (0 to {config.vocab_size - 1}); "
                "use the checkpoint's own tokenizer"
            )
    text = CalibrationText(tuple(piece for ids in documents for piece in _pieces(ids, config.bos_token_id)))
    if text.tokens < _LEAST:
        raise InputError(f"{path}: {text.tokens} tokens are too few to calibrate on; give at least {_LEAST}")
    return text


def _documents(file: Path, checkpoint: Path) -> list[list[int]]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"{file}: larger than {_MAX_BYTES >> 20} MiB; a few hundred KB of text are enough")
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; name a text, token ids as JSON, or `default`") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start} is not UTF-8; give plain text, or token ids as JSON") from None
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}; check the path") from error
    if file.suffix == ".json":
        return _token_ids(text, file)
    from l4export.runtimes.text import TextCodec

    codec = TextCodec.open(checkpoint)
    if codec is None:
        raise InputError(f"{checkpoint}: has no tokenizer.json; calibrate on token ids, as a .json file")
    return [codec.encode(text)] if text.strip() else []


def _token_ids(text: str, file: Path) -> list[list[int]]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({type(error).__name__}); write a list of token ids") from None
    documents = raw if isinstance(raw, list) and raw and isinstance(raw[0], list) else [raw]
    for ids in documents:
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise InputError(f"{file}: must hold token ids, as a list or as a list of lists")
    return documents


def _pieces(ids: Sequence[int], begin: int | None) -> list[tuple[int, ...]]:
    """A document in sequences of at most `_LONGEST` ids, each with the token that it begins with."""
    first = [ids[0]] if ids and ids[0] == begin else []
    rest = ids[len(first) :]
    step = _LONGEST - len(first)
    return [(*first, *rest[at : at + step]) for at in range(0, len(rest), step)]
