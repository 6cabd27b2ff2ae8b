"""How much memory this process may still take."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["available_memory"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that can be taken without swapping: of the machine, or of the control group where that has less.

    Cached pages of files count as available, because the system gives them up.
    """
    match = re.search(r"^MemAvailable: +(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE)
    assert match is not None
    return min([int(match[1]) * 1024, *_of_control_group()])


def _of_control_group() -> list[int]:
    """Version 2, as containers have it; nothing where there is no limit."""
    try:
        limit, current = ((_CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        files = re.search(r"^file (\d+)$", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return []
    return [] if limit == "max" else [int(limit) - int(current) + int(files[1] if files else 0)]
