"""The small files that go with a checkpoint's weights: text, generation defaults, and the terms of use."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from l4export.errors import InputError

__all__ = ["find_companions", "is_companion"]

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)

TERMS = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|COPYRIGHT|(ACCEPTABLE_)?USE_POLICY)([-._].*)?", re.IGNORECASE)
"""Names of files that say under which terms a model may be used and passed on."""

TEMPLATE_FOLDER = "additional_chat_templates"
"""Where a checkpoint has chat templates with names. An engine has no folders: a dot takes the place of the slash."""

_NAMED_TEMPLATE = re.compile(re.escape(TEMPLATE_FOLDER) + r"\..+\.jinja")
_MOST_BYTES = 16 << 20
_MOST_BYTES_OF = {"tokenizer.json": 128 << 20}


def is_companion(name: str) -> bool:
    """Tell whether a file of an engine may be a companion, by its name."""
    return name in TEXT_FILES or bool(TERMS.fullmatch(name) or _NAMED_TEMPLATE.fullmatch(name))


def find_companions(checkpoint: Path) -> dict[str, Path]:
    """Find the companions that a checkpoint has.

    Returns:
        The file of each, by the name that it has in an engine.

    Raises:
        InputError: one is not a regular file, or too large, or called .json and not a JSON object; it would otherwise
            be missed only when the engine runs. (tokenizer.json is tried as a whole elsewhere.)
    """
    found = {name: checkpoint / name for name in sorted(os.listdir(checkpoint)) if is_companion(name)}
    found = {name: path for name, path in found.items() if name in TEXT_FILES or not path.is_dir()}
    if (folder := checkpoint / TEMPLATE_FOLDER).is_dir():
        found |= {f"{TEMPLATE_FOLDER}.{path.name}": path for path in sorted(folder.glob("*.jinja"))}
    for name, path in found.items():
        _check(path, _MOST_BYTES_OF.get(name, _MOST_BYTES))
    return found


def _check(path: Path, limit: int) -> None:
    if not path.is_file():
        raise InputError(f"{path}: not a readable regular file; restore or remove it")
    if path.stat().st_size > limit:
        raise InputError(f"{path}: larger than {limit >> 20} MiB; restore or remove it")
    if path.suffix == ".json" and path.name not in _MOST_BYTES_OF and not _is_json_object(path):
        raise InputError(f"{path}: not a JSON object; restore or remove it")


def _is_json_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes().decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False
