"""Sizes in bytes, as options are written."""

from __future__ import annotations

import re

from l4export.errors import InputError

__all__ = ["parse_size"]

_UNITS = {"": 1, **{f"{p}{u}": 1000**i for i, p in enumerate("kmgt", 1) for u in ("", "b")}}
_UNITS |= {"b": 1, **{f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)}}


def parse_size(option: str, text: str) -> int:
    """A size in bytes: 512MB and 512M are 512 x 10^6, 512MiB is 512 x 2^20; case does not matter.

    Raises:
        InputError: the text is no size; the message names the option.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?([a-z]*)", text.strip().lower(), re.ASCII)
    if not match or match[2] not in _UNITS:
        raise InputError(f"{option} {text[:40]!r} is not a size; write it as 512MB, 2GiB or 1.5G")
    return int(float(match[1]) * _UNITS[match[2]])
