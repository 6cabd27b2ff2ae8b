"""What l4export wrote: only that is ever removed.

A name alone proves nothing. An engine is recognised by its manifest, of any version. An unfinished build is recognised
by its journal, or by a manifest. In addition, everything in the directory must be a regular file whose name a build
writes or the manifest lists. Links are never followed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from l4export.engine.check_record import CHECK_RECORD
from l4export.engine.companions import SETTINGS_FILES, is_companion
from l4export.engine.manifest import CHECK, DECODER, MANIFEST, PORTABLE, VISION, listed_files
from l4export.errors import InputError
from l4export.storage.journal import JOURNAL, is_journal
from l4export.targets.genai_config import GENAI_FILES

__all__ = [
    "CALIBRATION",
    "CALIBRATION_REPORT",
    "STAGED_MANIFEST",
    "check_engine",
    "check_unfinished",
    "clear_unfinished",
    "lies_in",
    "remove_calibration",
    "remove_engine",
    "remove_unfinished",
]

CALIBRATION = "calibration"
"""The work directory of a calibration, which ends with the build."""

CALIBRATION_REPORT = "calibration.json"
"""The file of an engine that tells how its calibration went."""

STAGED_MANIFEST = f"{MANIFEST}.partial"
"""The manifest, before it has its name."""

_STAGED_JOURNAL = f"{JOURNAL}.partial"
_JOURNALS = (JOURNAL, _STAGED_JOURNAL)
_MANIFESTS = (MANIFEST, STAGED_MANIFEST)
_GRAPHS = (f"{PORTABLE}.onnx", f"{CHECK}.onnx", CHECK_RECORD)
_NAMES = (MANIFEST, CALIBRATION_REPORT, *GENAI_FILES, *_GRAPHS, *SETTINGS_FILES)
_OF_GRAPH = re.compile(rf"({DECODER}|{VISION})(-\d{{5}}-of-\d{{5}})?\.(onnx|data|engine)")
_OF_LAYER = re.compile(r"layer-\d{5}\.(codes|json|hidden)")

Chooses = Callable[["os.DirEntry[str]"], bool]


def check_engine(path: Path) -> None:
    """Refuse what is not an engine directory, or holds anything else.

    Raises:
        InputError: by the name of what would be lost.
    """
    listed = None if path.is_symlink() else listed_files(path / MANIFEST)
    if listed is None:
        raise InputError(f"{path}: exists already and is not an engine directory; choose another name")
    if foreign := _foreign(path, _of_engine(listed)):
        raise InputError(f"{path}: {foreign!r} is no part of the engine and would be lost; move it away")


def check_unfinished(path: Path) -> None:
    """Refuse what stands where a build is to be written, unless a build left it. An empty directory is accepted.

    Raises:
        InputError: by the name of what is in the way.
    """
    if not os.path.lexists(path):
        return
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise InputError(f"{path}: is in the way, and is not the directory of an unfinished build; move it away")
    foreign = _foreign(path, _of_build(path), (CALIBRATION,))
    if not foreign and (path / CALIBRATION).is_dir():
        foreign = _foreign(path / CALIBRATION, _of_calibration)
    proven = is_journal(path / JOURNAL) or any(listed_files(path / name) is not None for name in _MANIFESTS)
    if not foreign and not proven:
        foreign = next((name for name in sorted(os.listdir(path)) if name != _STAGED_JOURNAL), None)
    if foreign:
        raise InputError(f"{path}: {foreign!r} was not written by a build; move the directory away")


def lies_in(path: Path, directory: Path) -> bool:
    """Whether a path leads to `directory` or into it, by whatever links, mounts and dots."""
    place = Path(os.path.realpath(directory.parent)) / directory.name
    real = Path(os.path.realpath(path))
    return any(above == place or _same(above, directory) for above in (real, *real.parents))


def remove_engine(path: Path) -> None:
    """Remove an engine, its manifest last, so that a directory that is half removed can still be recognised.

    Files that are not part of the engine stay, and so does the directory that holds them.
    """
    listed = listed_files(path / MANIFEST) or {}
    _remove(path, _of_engine(listed), last=MANIFEST)
    _remove_directory(path)


def remove_unfinished(path: Path) -> None:
    """Remove what builds have written in `path`, and `path` itself unless anything else is in it."""
    clear_unfinished(path)
    _remove_directory(path)


def clear_unfinished(path: Path, keep: Collection[str] = ()) -> None:
    """Remove what builds have written in `path`, but for what `keep` names; the journal last.

    If `keep` contains `CALIBRATION`, the directory of a calibration stays as it is. A file that has a second name, such
    as one that was taken over from an engine, is never kept, because kept files are written in place.
    """
    if CALIBRATION not in keep:
        remove_calibration(path)
    ours = _of_build(path)

    def ends(entry: os.DirEntry[str]) -> bool:
        return ours(entry) and not (entry.name in keep and entry.stat(follow_symlinks=False).st_nlink == 1)

    _remove(path, ends, last=JOURNAL)


def remove_calibration(path: Path) -> None:
    """Remove what a calibration has written in `path`."""
    directory = path / CALIBRATION
    if directory.is_dir() and not directory.is_symlink():
        _remove(directory, _of_calibration, last=JOURNAL)
        _remove_directory(directory)


def _of_engine(listed: Mapping[str, int]) -> Chooses:
    """The files of an engine: those whose names builds write, and those that the manifest lists with their sizes."""

    def ours(entry: os.DirEntry[str]) -> bool:
        known = entry.name in _NAMES or bool(_OF_GRAPH.fullmatch(entry.name))
        return known or listed.get(entry.name) == entry.stat(follow_symlinks=False).st_size

    return ours


def _of_build(path: Path) -> Chooses:
    """The files of an unfinished build, or of an engine that was being removed."""
    of_engine = _of_engine({k: v for name in _MANIFESTS for k, v in (listed_files(path / name) or {}).items()})
    return lambda entry: entry.name in (*_JOURNALS, *_MANIFESTS) or is_companion(entry.name) or of_engine(entry)


def _of_calibration(entry: os.DirEntry[str]) -> bool:
    return entry.name in _JOURNALS or bool(_OF_LAYER.fullmatch(entry.name))


def _foreign(path: Path, ours: Chooses, directories: Collection[str] = ()) -> str | None:
    """The first entry of a directory, by name, that is no regular file that is `ours`, and none of `directories`."""
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in directories:
                return entry.name
        elif not entry.is_file(follow_symlinks=False) or not ours(entry):
            return entry.name
    return None


def _remove(path: Path, ours: Chooses, last: str) -> None:
    """Remove the regular files of a directory that are `ours`, that of the name `last` at the end."""
    entries = [entry for entry in os.scandir(path) if entry.is_file(follow_symlinks=False) and ours(entry)]
    for entry in sorted(entries, key=lambda entry: entry.name == last):
        os.unlink(entry.path)


def _remove_directory(path: Path) -> None:
    with contextlib.suppress(OSError):  # something is in it that is not ours
        os.rmdir(path)


def _same(path: Path, directory: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.lstat(directory))
    except OSError:
        return False
