"""Errors that a person can act on. Each has an exit code for the command line.

Every message is one line: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

__all__ = [
    "CheckFailed",
    "EnvironmentLacks",
    "InputError",
    "L4Error",
    "NotJudged",
    "StorageError",
    "one_line",
    "printable",
]


class L4Error(Exception):
    """The base of all errors that l4export raises on purpose."""

    exit_code = 2


class CheckFailed(L4Error):
    """A check, such as parity or verification, ran to its end and failed (exit code 1)."""

    exit_code = 1


class InputError(L4Error):
    """Bad usage or bad input: a checkpoint, an engine, a prompt, an option (exit code 2)."""

    exit_code = 2


class EnvironmentLacks(L4Error):
    """The environment lacks a package, a provider or a driver (exit code 3)."""

    exit_code = 3


class StorageError(L4Error):
    """Reading or writing failed: permissions, a full disk, a device error (exit code 4)."""

    exit_code = 4


class NotJudged(L4Error):
    """A check ran to its end, and nothing that it could judge was wrong, but it proves nothing (exit code 5)."""

    exit_code = 5


def one_line(error: BaseException, *plain: type[BaseException]) -> str:
    """Return another library's error as part of a line, cut at 300 characters.

    The type of the error comes first, unless it is a ValueError or one of `plain`, whose messages say what happened.
    """
    text = printable(str(error))[:300]
    if text and isinstance(error, (ValueError, *plain)):
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def printable(text: str) -> str:
    """Return a text of any origin as one line without control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))
