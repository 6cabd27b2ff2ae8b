"""The small files that go with a checkpoint's weights: tokenizer, chat template, generation defaults."""

from __future__ import annotations

import json
import os
from pathlib import Path

from l4export.errors import InputError

__all__ = ["COMPANIONS", "check_companions"]

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_MAX_BYTES = 256 << 20


def check_companions(checkpoint: Path) -> list[str]:
    """The names of the companions that the checkpoint has.

    Raises:
        InputError: one is not a regular file, larger than 256 MiB, or called .json and not a JSON object; it would
            otherwise be missed only when the engine runs.
    """
    names = [name for name in COMPANIONS if os.path.lexists(checkpoint / name)]
    for name in names:
        path = checkpoint / name
        if not path.is_file():
            raise InputError(f"{path}: not a readable regular file; restore or remove it")
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: larger than {_MAX_BYTES >> 20} MiB; restore or remove it")
        if name.endswith(".json") and not _is_json_object(path):
            raise InputError(f"{path}: not a JSON object; restore or remove it")
    return names


def _is_json_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False
