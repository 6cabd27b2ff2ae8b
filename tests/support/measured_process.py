"""What a process takes, measured so that the tests' own memory is not counted.

Linux charges a process with the peak of the one that it was forked from: `ru_maxrss` of a child of a test is at least
what the tests took themselves. So commands are started from a small process in between, and a process that measures
itself asks for `VmHWM`, which begins anew with its program.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "measure", "own_peak"]

_BETWEEN = """if True:
    import json, os, subprocess, sys
    process = subprocess.Popen(sys.argv[2:])
    _, status, usage = os.wait4(process.pid, 0)
    told = [os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime]
    open(sys.argv[1], "w").write(json.dumps(told))
"""


@dataclass(frozen=True)
class Usage:
    """How a command ended, its peak resident memory in bytes, and its processor time in seconds."""

    exit_code: int
    peak: int
    seconds: float


def measure(command: Sequence[object], record: Path) -> Usage:
    """Run a command, its output where that of the tests goes; `record` is a file to be written for it."""
    subprocess.run([sys.executable, "-I", "-S", "-c", _BETWEEN, record, *map(str, command)], check=True)
    return Usage(*json.loads(record.read_text()))


def own_peak() -> int:
    """Bytes that this process had in memory at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
