"""Messages as JSON, with images in files beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from l4export.errors import InputError

__all__ = ["image_files", "parse_messages"]

_URLS = ("http://", "https://")


def parse_messages(data: bytes, directory: Path, where: str) -> list[Any]:
    """A JSON list of messages; paths of images in it are taken from `directory`.

    Args:
        data: The JSON document, in UTF-8.
        directory: What paths are relative to.
        where: What errors call the document.

    Raises:
        InputError: it is something else.
    """
    try:
        messages = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        messages = None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InputError(f'{where}: not a JSON list of messages, such as [{{"role": ..., "content": ...}}]')
    for part, key in _named_files(messages):
        part[key] = str(directory / part[key])
    return messages


def image_files(messages: Sequence[Any]) -> list[Path]:
    """The files that parts of images name."""
    return [Path(part[key]) for part, key in _named_files(messages)]


def _named_files(messages: Sequence[Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Parts of images with a path, and the key under which they have it."""
    contents = [message.get("content") for message in messages]
    for part in (part for content in contents if isinstance(content, list) for part in content):
        if isinstance(part, dict) and part.get("type") == "image":
            for key in ("path", "image"):
                if isinstance(part.get(key), str) and not part[key].startswith(_URLS):
                    yield part, key
