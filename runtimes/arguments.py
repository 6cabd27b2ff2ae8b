"""Arguments of public calls, checked when the call is made: each refusal is one line that begins with the name."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError

__all__ = [
    "a_flag",
    "a_number",
    "a_path",
    "a_whole_number",
    "integers",
    "is_sequence",
    "per_row",
    "rows_of_ids",
    "shown",
]


_MOST = 2**63 - 1


def shown(value: object) -> str:
    """A value as a message shows it: one line of at most 60 characters."""
    if isinstance(value, np.generic):
        value = value.item()
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a representation is the caller's own code; a number of thousands of digits has none
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def a_whole_number(value: object, name: str, least: int, most: int | None = None) -> int:
    """A Python or NumPy integer of `least` to `most`. Booleans, floats and strings are none.

    Raises:
        InputError: it is something else, or outside the range.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        number = int(value)
        if least <= number and (most is None or number <= most):
            return number
    wanted = f"{least} or more" if most is None else f"{least} to {most}"
    raise InputError(f"{name} is {shown(value)}: give a whole number, {wanted}")


def a_number(value: object, name: str, wanted: str) -> float:
    """A finite real number as a float; `wanted` says in words what to give. Booleans and strings are none.

    Raises:
        InputError: it is something else, NaN or infinite.
    """
    if not isinstance(value, bool) and isinstance(value, Real):
        try:
            number = float(value)
        except (OverflowError, ValueError):
            number = math.inf
        if math.isfinite(number):
            return number
    raise InputError(f"{name} is {shown(value)}: give {wanted}")


def a_flag(value: object, name: str) -> bool:
    """True or False, as Python or NumPy has them. Raises `InputError` for anything else."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InputError(f"{name} is {shown(value)}: give True or False")


def a_path(value: object, name: str) -> Path:
    """A path, given as a string or an `os.PathLike` of one. Raises `InputError` for anything else."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{name} is {shown(value)}: give the path of a file or directory")
    return Path(text)


def is_sequence(value: object) -> bool:
    """Whether a value is a sequence of things that are not characters or bytes. (An array of no axes is none.)"""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def integers(values: object) -> NDArray[Any] | None:
    """A sequence of integers, or a single one, as an array of integers of that shape; None for anything else.

    Booleans are no integers, wherever they stand. Integers beyond 64 bits give an array of objects.
    """
    if not isinstance(values, int | np.integer) and not is_sequence(values):
        return None
    try:
        array = np.asarray(values)
    except Exception:  # rows of different lengths; a sequence is the caller's own code
        return None
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype == object:
        return array if all(type(value) is int for value in array.flat) else None
    if array.dtype.kind not in "iu" or _holds_a_boolean(values):
        return None
    return array.astype(object) if array.dtype.kind == "u" and array.max() > _MOST else array


def per_row(value: object, name: str, rows: int) -> NDArray[np.int64]:
    """One whole number for every row, or one each, as int64 [rows].

    Raises:
        InputError: it is something else.
    """
    given = integers(value)
    if given is None or given.dtype == object or given.shape not in ((), (rows,)):
        raise InputError(f"{name} is {shown(value)}: give a whole number, or one for each row; the session has {rows}")
    return np.broadcast_to(given, rows).astype(np.int64)


def rows_of_ids(token_ids: object) -> list[NDArray[Any]]:
    """The ids of each row as a flat array of integers, from a sequence of them for each row or from one alone.

    Raises:
        InputError: it is neither.
    """
    if not is_sequence(token_ids):
        raise InputError(f"token ids must be a sequence of integers, not {type(token_ids).__name__}")
    items: list[Any] = list(token_ids)  # type: ignore[call-overload]
    return [_row(index, item) for index, item in enumerate(items if items and is_sequence(items[0]) else [items])]


def _row(index: int, item: object) -> NDArray[Any]:
    row = integers(item)
    if row is None or row.ndim != 1:
        raise InputError(f"row {index}: token ids must be a flat sequence of integers")
    return row


def _holds_a_boolean(values: object) -> bool:
    """Whether a list has one among its numbers, where NumPy takes it for 0 or 1."""
    if isinstance(values, bool):
        return True
    if not isinstance(values, Iterable) or isinstance(values, np.ndarray | range):
        return False
    return any(isinstance(value, bool | np.bool_) for value in values)
