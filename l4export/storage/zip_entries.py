"""The table of a zip archive whose entries are stored as they are, as torch.save writes it.

The format [PKWARE, APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3]: entries, each a local header and its bytes; the central
directory, a header for each entry; its 64-bit end record and a locator; the end record. An archive is untrusted:
every entry must lie before the directory, none may overlap another or be compressed, and what is said of an entry or of
the directory in two places must agree, so that no two readers see two archives.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

from l4export.errors import InputError
from l4export.storage.opened_file import OpenedFile

__all__ = ["ZipEntry", "read_zip_entries"]

_END, _END64, _LOCATOR = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
_CENTRAL, _LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
_MAX_DIRECTORY = 32 * 2**20
_MAX_ENTRIES = 2**17
_ENCRYPTED = 0x2041  # bits of the flags: encryption, strong encryption, hidden headers
_HINT = "; download it again, or save it again with torch.save"


@dataclass(frozen=True)
class ZipEntry:
    """One file of the archive: the bytes `start` to `stop` of the archive are its content."""

    name: str
    start: int
    stop: int


def read_zip_entries(file: OpenedFile) -> dict[str, ZipEntry]:
    """The entries by name, in the order of their bytes.

    Raises:
        InputError: no zip archive, a damaged one, or one with compressed or encrypted entries.
        StorageError: reading failed.
    """
    count, size, offset = _directory(file)
    if size > _MAX_DIRECTORY or count > _MAX_ENTRIES:
        raise _refuse(file, f"a directory of {count} entries and {size} bytes is more than any checkpoint needs")
    data, at = file.read_at(offset, size), 0
    found: dict[str, tuple[int, ZipEntry]] = {}
    for _ in range(count):
        header, entry, at = _central_entry(file, data, at, offset)
        if entry.name in found:
            raise _refuse(file, f"entry {entry.name[:100]!r} is there twice")
        found[entry.name] = header, entry
    if at != size:
        raise _refuse(file, f"its directory has {size - at} bytes more than {count} entries take")
    ordered = sorted(found.values(), key=lambda pair: pair[0])
    for (_, first), (header, second) in itertools.pairwise(ordered):
        if header < first.stop:
            raise _refuse(file, f"entries {first.name[:100]!r} and {second.name[:100]!r} overlap")
    return {entry.name: entry for _, entry in ordered}


def _directory(file: OpenedFile) -> tuple[int, int, int]:
    """How many entries there are, and the directory's bytes and offset."""
    end = file.size - _END.size
    if end < 0:
        raise _refuse(file, "it is too short for a zip archive")
    magic, *disks, here, count, size, offset, comment = _END.unpack(file.read_at(end, _END.size))
    if magic != b"PK\5\6" or comment:
        raise _refuse(file, "it does not end as a zip archive of torch.save does")
    found, stop = (count, size, offset), end
    locator = end - _LOCATOR.size
    if locator >= 0 and (told := _LOCATOR.unpack(file.read_at(locator, _LOCATOR.size)))[0] == b"PK\6\7":
        _, _, at, _ = told
        if at + _END64.size != locator:
            raise _refuse(file, "its 64-bit end record is not where its locator says")
        magic, _, _, _, *disks, here64, count64, size64, offset64 = _END64.unpack(file.read_at(at, _END64.size))
        if magic != b"PK\6\6" or here64 != count64:
            raise _refuse(file, "its 64-bit end record is damaged")
        for small, large, most in ((count, count64, 0xFFFF), (size, size64, 2**32 - 1), (offset, offset64, 2**32 - 1)):
            if small not in (large, most):
                raise _refuse(file, "its two end records differ")
        found, here, count, stop = (count64, size64, offset64), here64, count64, at
    if any(disks) or here != count:
        raise _refuse(file, "it is one of several parts")
    if found[1] + found[2] != stop:
        raise _refuse(file, "its directory does not end where its end record begins")
    return found


def _central_entry(file: OpenedFile, data: bytes, at: int, limit: int) -> tuple[int, ZipEntry, int]:
    """The offset of an entry's local header, the entry, and where the next header of the directory is."""
    if at + _CENTRAL.size > len(data):
        raise _refuse(file, "its directory is truncated")
    magic, _, _, flags, method, _, _, _, packed, size, *lengths, disk, _, _, header = _CENTRAL.unpack_from(data, at)
    name_bytes, extra_bytes, comment_bytes = lengths
    at += _CENTRAL.size
    raw, extra = data[at : at + name_bytes], data[at + name_bytes : at + name_bytes + extra_bytes]
    at += name_bytes + extra_bytes + comment_bytes
    if magic != b"PK\1\2" or at > len(data):
        raise _refuse(file, "its directory is damaged")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _refuse(file, "the name of an entry is not UTF-8") from None
    if flags & _ENCRYPTED or method or disk:
        raise _refuse(file, f"entry {name[:100]!r} is compressed, encrypted or elsewhere, which torch.save never does")
    size, packed, header = _widened(file, name, extra, [size, packed, header])
    if size != packed:
        raise _refuse(file, f"entry {name[:100]!r} has {size} bytes, and {packed} of them are stored")
    start = _content(file, raw, flags, header, limit)
    if start + size > limit:
        raise _refuse(file, f"entry {name[:100]!r} ends beyond the entries")
    return header, ZipEntry(name, start, start + size), at


def _content(file: OpenedFile, name: bytes, flags: int, header: int, limit: int) -> int:
    """Where the bytes of an entry begin: behind its local header, which must be there."""
    start = header + _LOCAL.size + len(name)
    local = file.read_at(header, start - header) if start <= limit else bytes(_LOCAL.size)
    magic, _, local_flags, method, *_, name_bytes, extra_bytes = _LOCAL.unpack_from(local)
    same = (local_flags, method, name_bytes) == (flags, 0, len(name)) and local[_LOCAL.size :] == name
    if magic != b"PK\3\4" or not same:
        raise _refuse(file, f"entry {name.decode()[:100]!r} is not where the directory says")
    return start + int(extra_bytes)


def _widened(file: OpenedFile, name: str, extra: bytes, values: list[int]) -> list[int]:
    """Size, stored size and offset of an entry; those that 32 bits cannot hold are in its extra field."""
    wanted, at = [index for index, value in enumerate(values) if value == 2**32 - 1], 0
    while wanted and at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + size]
        if kind == 1 and len(field) >= 8 * len(wanted):
            for index, (value,) in zip(wanted, struct.iter_unpack("<Q", field[: 8 * len(wanted)]), strict=True):
                values[index] = value
            return values
        at += 4 + size
    if wanted:
        raise _refuse(file, f"entry {name[:100]!r} lacks its 64-bit sizes")
    return values


def _refuse(file: OpenedFile, problem: str) -> InputError:
    return InputError(f"{file.path}: {problem}{_HINT}")
