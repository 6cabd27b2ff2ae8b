"""Recognises files that are not what their names say."""

from __future__ import annotations

__all__ = ["foreign_kind"]

_PICKLE = "looks like a pickle, which is never read (it can run code); convert it to safetensors"

_KINDS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; fetch it with git lfs pull"),
    (b"PK\x03\x04", "is a zip archive, perhaps of torch.save, whose pickle is never read; convert it to safetensors"),
    *((b"\x80" + bytes([protocol]), _PICKLE) for protocol in (2, 3, 4, 5)),
    (b"GGUF", "is a GGUF file, which is not read; use the checkpoint in Hugging Face layout"),
    (b"<", "is a web page, perhaps an error message; download the file again"),
)


def foreign_kind(head: bytes) -> str | None:
    """What a file that could not be read seems to be, and what to do; None where its first bytes say nothing."""
    start = head[:64].lstrip()
    return next((told for magic, told in _KINDS if start.startswith(magic)), None)
