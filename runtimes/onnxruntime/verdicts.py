"""What has passed its check on this machine, so that it is checked once: a file each in the user's cache directory.

A file's name is a digest of the key, and its text is the key. Any other text, and whatever cannot be read, counts for
nothing; what cannot be written is checked again next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

__all__ = ["has_passed", "keep_pass"]

_FORMAT = "l4export-passed-1"
"""Another number means that what is checked, or how closely, has changed."""


def has_passed(key: Mapping[str, str]) -> bool:
    """Whether what `key` names has passed."""
    text = _text(key)
    with contextlib.suppress(OSError, RuntimeError), open(_place(text), "rb") as file:
        return file.read(len(text) + 1) == text
    return False


def keep_pass(key: Mapping[str, str]) -> None:
    """Keep that what `key` names has passed, if anything can be kept; whole or not at all."""
    text = _text(key)
    with contextlib.suppress(OSError, RuntimeError):
        place = _place(text)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
        try:
            partial.write_bytes(text)
            os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)


def _text(key: Mapping[str, str]) -> bytes:
    return json.dumps({"format": _FORMAT, **key}, sort_keys=True).encode() + b"\n"


def _place(text: bytes) -> Path:
    """In `XDG_CACHE_HOME`, or ~/.cache where that is no absolute path [XDG Base Directory Specification 0.8].

    RuntimeError: there is no home directory.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    caches = chosen if chosen.is_absolute() else Path.home() / ".cache"
    return caches / "l4export" / f"passed-{hashlib.sha256(text).hexdigest()[:32]}.json"
