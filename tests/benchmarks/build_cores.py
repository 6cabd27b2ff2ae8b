"""Seconds that a build takes with 1, 2, 4, ... workers, and how much of that the processors were at work.

    python tests/benchmarks/build_cores.py CHECKPOINT [--runs 3] [--jobs 1 2] [build options ...]

Every build is a process of its own and writes a new engine beside the checkpoint. The checkpoint is in the kernel's
cache after the first build if memory holds it. Medians. If a build's processor time is nearly jobs times its wall time,
all workers are at work all the time, and more cores would make it faster.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def once(checkpoint: Path, jobs: int, options: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds of one build."""
    place = Path(tempfile.mkdtemp(dir=checkpoint.resolve().parent))
    words = [sys.executable, "-m", "l4export", "build", str(checkpoint), "-o", str(place / "e"), "--jobs", str(jobs)]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        subprocess.run([*words, *options], check=True, capture_output=True)
    finally:
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        shutil.rmtree(place)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    cores = os.cpu_count() or 1
    doubled = [2**i for i in range(cores.bit_length()) if 2**i <= cores]
    parser.add_argument("--jobs", type=int, nargs="+", default=doubled)
    arguments, options = parser.parse_known_args()
    once(arguments.checkpoint, max(arguments.jobs), options)  # fills the cache
    print(f"{'jobs':>4}  {'wall s':>7}  {'processor s':>11}  {'busy cores':>10}  faster than with {arguments.jobs[0]}")
    first = 0.0
    for jobs in arguments.jobs:
        runs = [once(arguments.checkpoint, jobs, options) for _ in range(arguments.runs)]
        wall, cpu = (statistics.median(values) for values in zip(*runs, strict=True))
        first = first or wall
        print(f"{jobs:4d}  {wall:7.2f}  {cpu:11.2f}  {cpu / wall:10.2f}  {first / wall:.2f}x", flush=True)
    print(f"load average {os.getloadavg()[0]:.1f} on {cores} cores")


if __name__ == "__main__":
    main()
