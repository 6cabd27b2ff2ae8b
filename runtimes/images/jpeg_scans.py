"""How many scans a JPEG file has. Each is a pass over all pixels, and a hundred bytes are enough for one."""

from __future__ import annotations

import re

__all__ = ["count_scans"]

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""What is no byte of a scan (FF 00), no filling (FF FF) and no restart (FF D0 to FF D7)."""

_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01


def count_scans(data: bytes) -> int:
    """Scans up to the end of the first picture, as libjpeg finds them."""
    count, at = 0, 0
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = data[found.start() + 1], found.end()
        if marker == _EOI:
            break
        count += marker == _SOS
        if marker not in (_SOI, _TEM):
            at += int.from_bytes(data[at : at + 2], "big")  # the segment that belongs to it
    return count
