"""Files that are no libl4cpu for this machine, and what both runtimes say of them."""

from __future__ import annotations

import platform
from pathlib import Path

_X86_64, _AARCH64 = 62, 183
_OTHER = ("x86_64", _X86_64) if platform.machine() == "aarch64" else ("aarch64", _AARCH64)


def other_libraries(library: Path, directory: Path) -> dict[Path, str]:
    """Paths, each with a pattern of why it is refused; `library` is libl4cpu.so."""
    name, machine = _OTHER
    data = library.read_bytes()
    files = {"text.so": b"#!/bin/sh\n" * 20, "other.so": data[:18] + machine.to_bytes(2, "little") + data[20:]}
    for file, content in files.items():
        (directory / file).write_bytes(content)
    return {
        directory / "nowhere.so": r"nowhere\.so cannot be (read|opened) \(.*No such file",
        directory / "text.so": r"text\.so is no library",
        directory / "other.so": rf"other\.so is for {name}, and this is {platform.machine()}",
    }
