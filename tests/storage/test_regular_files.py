"""Files of unknown kind: pipes, devices, sockets, links, and files that are too large."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from l4export.errors import InputError, StorageError
from l4export.storage.regular_files import open_regular, read_small, regular_sha256, regular_size


def test_a_file_and_a_link_to_one(tmp_path: Path) -> None:
    """As the cache of a model hub has them."""
    (tmp_path / "blob").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("blob")
    (tmp_path / "link to link").symlink_to(tmp_path / "link")
    for name in ("blob", "link", "link to link"):
        assert regular_size(tmp_path / name) == 5
        assert read_small(tmp_path / name, 5, "mend it") == b"12345"
        assert regular_sha256(tmp_path / name, "mend it") == hashlib.sha256(b"12345").hexdigest()
        with pytest.raises(InputError, match="more than 4 bytes; mend it"):
            read_small(tmp_path / name, 4, "mend it")


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "null", "zero", "terminal", "broken link", "nothing"])
@pytest.mark.parametrize("is_link", [False, True])
def test_whatever_else_is_refused_at_once(
    tmp_path: Path, kind: str, is_link: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = Path("it")
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            socket.socket(socket.AF_UNIX).bind("it")
        case "directory":
            path.mkdir()
        case "null" | "zero":
            path = Path("/dev") / kind
        case "terminal":
            path = Path("/dev/ptmx")
        case "broken link":
            path.symlink_to("nowhere")
    if is_link:
        Path("link").symlink_to(path)
        path = Path("link")
    opened = []
    monkeypatch.setattr(os, "open", lambda *arguments: opened.append(arguments))
    assert regular_size(path) is None
    for read in (lambda: read_small(path, 10, "mend it"), lambda: regular_sha256(path, "mend it")):
        with pytest.raises(InputError, match=r"(no such|not a regular) file; mend it"):
            read()
    assert not opened


def test_a_pipe_that_takes_the_files_place_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "it")
    monkeypatch.setattr("l4export.storage.regular_files.regular_size", lambda _: 5)
    with pytest.raises(InputError, match="not a regular file"):
        open_regular(tmp_path / "it", "mend it")


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "it").symlink_to("it")
    with pytest.raises(StorageError, match="cannot be read"):
        read_small(tmp_path / "it", 10, "mend it")


def test_a_sparse_file_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "it", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="more than 1000 bytes"):
        read_small(tmp_path / "it", 1000, "mend it")
