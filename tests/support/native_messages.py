"""Which refusals both runtimes tell in the same words."""

from __future__ import annotations

import re

_UNLIKE = re.compile(r"""\\ud[89a-f] | (?<![\w"])-?\d{19,}(?![\w"])""", re.VERBOSE)


def told_alike(document: str, message: str) -> bool:
    """Whether the native runtime says of a document with JSON what Python's `message` says.

    What is no JSON it says in its own words, and half a surrogate pair is none. Of an integer beyond 64 bits it knows
    about how large it is.
    """
    return "JSON" not in message and not _UNLIKE.search(document)
