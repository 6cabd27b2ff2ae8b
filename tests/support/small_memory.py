"""Commands run where the kernel's cache cannot hold their files, and the bytes that they read from the disk.

With a memory cgroup (root, cgroup v1 or v2) the command and its share of the cache are limited. Elsewhere the files are
dropped from the cache once a second: what is read twice, more than a second apart, comes from the disk twice as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DiskUse", "disk_use"]

_ROOTS = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}

_INSIDE = """if True:
    import json, os, resource, subprocess, sys, time
    record, group, files, command = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:]
    if group:
        open(f"{group}/cgroup.procs", "w").write(str(os.getpid()))
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    began, process = time.monotonic(), subprocess.Popen(command)
    while True:
        for descriptor in descriptors:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            process.wait(None if group else 1)
            break
        except subprocess.TimeoutExpired:
            pass
    seconds, usage = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    io = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())  # of children that ended, too
    told = [process.returncode, int(io["read_bytes"]), seconds, usage.ru_utime + usage.ru_stime, bool(group)]
    open(record, "w").write(json.dumps(told))
"""


@dataclass(frozen=True)
class DiskUse:
    """How a command ended, the bytes it read from the disk, its wall and processor time in seconds, and whether its
    memory was limited."""

    exit_code: int
    read: int
    seconds: float
    cpu_seconds: float
    limited: bool


def disk_use(command: Sequence[object], limit: int, files: Iterable[Path], record: Path) -> DiskUse:
    """Run a command in `limit` bytes of memory, cache included; `files`, which it reads, are not in the cache at the
    beginning. `record` is a file to be written for it."""
    files = [file.resolve() for file in files]
    for file in files:  # dirty pages cannot be dropped
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    with _limited(limit) as group:
        words = [sys.executable, "-I", "-S", "-c", _INSIDE, record, group or "", json.dumps(list(map(str, files)))]
        subprocess.run([*map(str, words), *map(str, command)], check=True)
    return DiskUse(*json.loads(record.read_text()))


@contextlib.contextmanager
def _limited(limit: int) -> Iterator[Path | None]:
    """A memory cgroup of so many bytes; None where none can be made."""
    for root, knob in _ROOTS.items():
        group = root / f"l4export-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / knob).write_text(str(limit))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    yield None
