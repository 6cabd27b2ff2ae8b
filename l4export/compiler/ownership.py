"""What l4export wrote: only that is ever removed.

A name alone proves nothing. A product, which is an engine or a written checkpoint, is recognised by its manifest, of
any version. An unfinished build is recognised by its journal, or by a manifest. In addition, everything in the
directory must be a regular file whose name a build writes or the manifest lists. Links are never followed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from l4export.compiler.products import PRODUCTS, Product
from l4export.engine.companions import is_companion
from l4export.engine.manifest import listed_files
from l4export.errors import InputError
from l4export.storage.journal import JOURNAL, is_journal

__all__ = [
    "CALIBRATION",
    "check_product",
    "check_unfinished",
    "clear_unfinished",
    "files_in",
    "lies_in",
    "remove_calibration",
    "remove_product",
    "remove_unfinished",
]

CALIBRATION = "calibration"
"""The work directory of a calibration, which ends with the build."""

_JOURNALS = (JOURNAL, f"{JOURNAL}.partial")
_MANIFESTS = {name: kind for kind in PRODUCTS for name in (kind.manifest, kind.staged_manifest)}
_FOLDERS = tuple(folder for kind in PRODUCTS for folder in kind.folders)
_OF_LAYER = re.compile(r"layer-\d{5}\.(codes|json|hidden)")

Chooses = Callable[[str, "os.DirEntry[str]"], bool]
"""Whether a file is meant, by its path in the directory and its entry."""


def check_product(path: Path, product: Product) -> None:
    """Refuse what is not a product of that kind, or holds anything else.

    Raises:
        InputError: by the name of what would be lost.
    """
    listed = None if path.is_symlink() else listed_files(path / product.manifest, product.format)
    if listed is None:
        raise InputError(f"{path}: exists already and is not {product.what}; choose another name")
    if foreign := _foreign(path, _of_product(product, listed), product.folders):
        raise InputError(f"{path}: {foreign!r} is no part of the {product.name} and would be lost; move it away")


def check_unfinished(path: Path) -> None:
    """Refuse what stands where a build is to be written, unless a build left it. An empty directory is accepted.

    Raises:
        InputError: by the name of what is in the way.
    """
    if not os.path.lexists(path):
        return
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise InputError(f"{path}: is in the way, and is not the directory of an unfinished build; move it away")
    foreign = _foreign(path, _of_build(path), _FOLDERS, CALIBRATION)
    if not foreign and (path / CALIBRATION).is_dir():
        foreign = _foreign(path / CALIBRATION, _of_calibration)
    proven = is_journal(path / JOURNAL) or any(
        listed_files(path / name, kind.format) is not None for name, kind in _MANIFESTS.items()
    )
    if not foreign and not proven:
        foreign = next((name for name in sorted(os.listdir(path)) if name != _JOURNALS[1]), None)
    if foreign:
        raise InputError(f"{path}: {foreign!r} was not written by a build; move the directory away")


def lies_in(path: Path, directory: Path) -> bool:
    """Whether a path leads to `directory` or into it, by whatever links, mounts and dots."""
    place = Path(os.path.realpath(directory.parent)) / directory.name
    real = Path(os.path.realpath(path))
    return any(above == place or _same(above, directory) for above in (real, *real.parents))


def remove_product(path: Path, product: Product) -> None:
    """Remove a product, its manifest last, so that a directory that is half removed can still be recognised.

    Files that are not part of it stay, and so do the directories that hold them.
    """
    listed = listed_files(path / product.manifest, product.format) or {}
    _remove(path, _of_product(product, listed), product.manifest, product.folders)
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

    def ends(name: str, entry: os.DirEntry[str]) -> bool:
        return ours(name, entry) and not (name in keep and entry.stat(follow_symlinks=False).st_nlink == 1)

    _remove(path, ends, JOURNAL, _FOLDERS)


def remove_calibration(path: Path) -> None:
    """Remove what a calibration has written in `path`."""
    directory = path / CALIBRATION
    if directory.is_dir() and not directory.is_symlink():
        _remove(directory, _of_calibration, JOURNAL)
        _remove_directory(directory)


def files_in(path: Path, folders: Collection[str] = ()) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What is in a directory and in these folders of it, by paths, in their order. Other folders are entries."""
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.name in folders and entry.is_dir(follow_symlinks=False):
            for inner in sorted(os.scandir(entry.path), key=lambda inner: inner.name):
                yield f"{entry.name}/{inner.name}", inner
        else:
            yield entry.name, entry


def _of_product(product: Product, listed: Mapping[str, int]) -> Chooses:
    """The files of a product: its manifest, those that this lists with their sizes, and those known by their names."""

    def ours(name: str, entry: os.DirEntry[str]) -> bool:
        known = name == product.manifest or (product.owns_by_name and product.writes(name))
        return known or listed.get(name) == entry.stat(follow_symlinks=False).st_size

    return ours


def _of_build(path: Path) -> Chooses:
    """The files of an unfinished build, or of a product that was being removed."""
    listed = dict[str, int]()
    for name, kind in _MANIFESTS.items():
        listed |= listed_files(path / name, kind.format) or {}

    def ours(name: str, entry: os.DirEntry[str]) -> bool:
        known = name in (*_JOURNALS, *_MANIFESTS) or is_companion(name) or any(kind.writes(name) for kind in PRODUCTS)
        return known or listed.get(name) == entry.stat(follow_symlinks=False).st_size

    return ours


def _of_calibration(name: str, _: os.DirEntry[str]) -> bool:
    return name in _JOURNALS or bool(_OF_LAYER.fullmatch(name))


def _foreign(path: Path, ours: Chooses, folders: Collection[str] = (), work: str | None = None) -> str | None:
    """The first entry of a directory or its `folders` that is no regular file that is `ours`, by its path.

    `work` is the name of a directory that may be there, whatever is in it.
    """
    for name, entry in files_in(path, folders):
        if entry.is_dir(follow_symlinks=False):
            if name != work:
                return name
        elif not entry.is_file(follow_symlinks=False) or not ours(name, entry):
            return name
    return None


def _remove(path: Path, ours: Chooses, last: str, folders: Collection[str] = ()) -> None:
    """Remove the regular files of a directory that are `ours`, that of the path `last` at the end, and its `folders`
    unless anything else is in them."""
    found = files_in(path, folders)
    entries = [(name, entry) for name, entry in found if entry.is_file(follow_symlinks=False) and ours(name, entry)]
    for _, entry in sorted(entries, key=lambda found: found[0] == last):
        os.unlink(entry.path)
    for folder in folders:
        if not (path / folder).is_symlink():
            _remove_directory(path / folder)


def _remove_directory(path: Path) -> None:
    with contextlib.suppress(OSError):  # something is in it that is not ours
        os.rmdir(path)


def _same(path: Path, directory: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.lstat(directory))
    except OSError:
        return False
