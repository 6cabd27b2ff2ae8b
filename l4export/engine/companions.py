"""The small files that go with a checkpoint's weights: for text, images and generation, and the terms of use."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from l4export.errors import InputError
from l4export.storage.opened_file import OpenedFile

__all__ = ["SETTINGS_FILES", "TEMPLATE_FOLDER", "is_companion", "open_companions"]

SETTINGS_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "preprocessor_config.json",
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
    return name in SETTINGS_FILES or bool(TERMS.fullmatch(name) or _NAMED_TEMPLATE.fullmatch(name))


def open_companions(checkpoint: Path) -> dict[str, OpenedFile]:
    """Open the companions that a checkpoint has: what is checked here is what can be copied from there.

    Returns:
        The file of each, by the name that it has in an engine.

    Raises:
        InputError: one is not a regular file, or too large, or called .json and not a JSON object; it would otherwise
            be missed only when the engine runs. (tokenizer.json is tried as a whole elsewhere.)
        StorageError: one may not be read.
    """
    if not checkpoint.is_dir():
        return {}
    found = {name: checkpoint / name for name in sorted(os.listdir(checkpoint)) if is_companion(name)}
    found = {name: path for name, path in found.items() if name in SETTINGS_FILES or not path.is_dir()}
    if (folder := checkpoint / TEMPLATE_FOLDER).is_dir():
        found |= {f"{TEMPLATE_FOLDER}.{path.name}": path for path in sorted(folder.glob("*.jinja"))}
    return {name: _opened(path, _MOST_BYTES_OF.get(name, _MOST_BYTES)) for name, path in found.items()}


def _opened(path: Path, limit: int) -> OpenedFile:
    if not path.is_file():
        raise InputError(f"{path}: not a readable regular file; restore or remove it")
    file = OpenedFile(path)
    if file.size > limit:
        raise InputError(f"{path}: larger than {limit >> 20} MiB; restore or remove it")
    if path.name in _MOST_BYTES_OF:
        return file
    data = file.read()  # what cannot be read is found now, and not when everything else has been written
    if path.suffix == ".json" and not _is_json_object(data):
        raise InputError(f"{path}: not a JSON object; restore or remove it")
    return file


def _is_json_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False
