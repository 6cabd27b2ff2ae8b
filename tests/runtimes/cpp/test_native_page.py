"""docs/guide/native.md: its programs compile and run by its commands."""

from __future__ import annotations

import re
from pathlib import Path

from native_library import native_site, run

from workshop import ROOT

PAGE = (ROOT / "docs/guide/native.md").read_text(encoding="utf-8")
FILE = re.compile(r"`([\w./]+\.(?:c|cpp))`[^`]*```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```(?:sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_it_is_a_walk(tmp_path: Path) -> None:
    site = native_site(tmp_path / "site")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, text in FILE.findall(PAGE):
        (tmp_path / name).write_text(text)
    said = [run("sh", "-ec", commands, cwd=tmp_path, **site) for commands in COMMANDS.findall(PAGE)]
    assert len(said) == 2
    assert len(said[-1].split()) > 20
