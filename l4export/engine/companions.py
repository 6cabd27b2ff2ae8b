"""The small files that go with a checkpoint's weights: tokenizer, chat template, generation defaults."""

from __future__ import annotations

import json
import os
from pathlib import Path

from l4export.errors import InputError
from l4export.storage.opened_file import OpenedFile

__all__ = ["COMPANIONS", "open_companions"]

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_MAX_BYTES = 256 << 20


def open_companions(checkpoint: Path) -> dict[str, OpenedFile]:
    """The companions that the checkpoint has, by name, opened: what is checked here is what can be copied from there.

    Raises:
        InputError: one is not a regular file, larger than 256 MiB, or called .json and not a JSON object; it would
            otherwise be missed only when the engine runs.
        StorageError: one may not be read.
    """
    return {name: _opened(checkpoint / name) for name in COMPANIONS if os.path.lexists(checkpoint / name)}


def _opened(path: Path) -> OpenedFile:
    if not path.is_file():
        raise InputError(f"{path}: not a readable regular file; restore or remove it")
    file = OpenedFile(path)
    if file.size > _MAX_BYTES:
        raise InputError(f"{path}: larger than {_MAX_BYTES >> 20} MiB; restore or remove it")
    if path.suffix == ".json" and not _is_json_object(file.read()):
        raise InputError(f"{path}: not a JSON object; restore or remove it")
    return file


def _is_json_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False
