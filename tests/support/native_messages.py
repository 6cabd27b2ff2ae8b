"""What both runtimes say of the same, and which refusals they tell in the same words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from l4export.errors import InputError
from native_library import NativeError

_UNLIKE = re.compile(r"""\\ud[89a-f] | (?<![\w"])-?\d{19,}(?![\w"])""", re.VERBOSE)


def told_alike(document: str, message: str) -> bool:
    """Whether the native runtime says of a document with JSON what Python's `message` says.

    What is no JSON it says in its own words, and half a surrogate pair is none. Of an integer beyond 64 bits it knows
    about how large it is.
    """
    return "JSON" not in message and not _UNLIKE.search(document)


def told(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call of either runtime returns, or the message of its refusal of bad input."""
    try:
        return call(*arguments)
    except (InputError, NativeError) as error:
        if isinstance(error, NativeError):
            assert error.status == 2
        return str(error)
