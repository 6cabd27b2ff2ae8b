"""Writing that fails after so many bytes, as a full disk or Ctrl-C would have it."""

from __future__ import annotations

import os

import pytest

__all__ = ["fail_after"]


def fail_after(patch: pytest.MonkeyPatch, count: int, error: BaseException) -> None:
    """Let `os.pwrite` raise `error` when more than `count` bytes were to be written."""
    written, pwrite = 0, os.pwrite

    def failing(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > count:
            raise error
        return pwrite(descriptor, data, offset)

    patch.setattr(os, "pwrite", failing)
