"""docs/guide/native.md: its programs compile and run by its commands."""

from __future__ import annotations

import re
from pathlib import Path

from native_library import SOURCE, native_site, run
from workshop import ROOT

PAGE = (ROOT / "docs/guide/native.md").read_text(encoding="utf-8")
FILE = re.compile(r"`([\w./]+\.(?:c|cpp))`[^`]*```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```(?:sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_it_is_a_walk(tmp_path: Path) -> None:
    """All its programs say the same."""
    site = native_site(tmp_path / "site")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, text in FILE.findall(PAGE):
        (tmp_path / name).write_text(text)
    _built, *said = [run("sh", "-ec", commands, cwd=tmp_path, **site) for commands in COMMANDS.findall(PAGE)]
    l4run, hello, hello_again = (text.strip() for text in said)
    assert len(hello.split()) > 10
    assert l4run == hello == hello_again


def test_the_lines_of_the_readme_compile(tmp_path: Path) -> None:
    (lines,) = re.findall(r"^```cpp\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "readme.cpp").write_text(f"#include <iostream>\n#include <l4export.hpp>\nint main() {{\n{lines}}}\n")
    run(
        "c++",
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{SOURCE}/include",
        tmp_path / "readme.cpp",
    )
