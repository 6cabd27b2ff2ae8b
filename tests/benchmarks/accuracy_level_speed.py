"""Tokens a second with float activations (accuracy level 1) and with activations rounded to int8 (level 4).

    python tests/benchmarks/accuracy_level_speed.py CHECKPOINT [--prefill 256] [--decode 8] [--repeats 5]

builds --quant int8 and int4 at both levels from the checkpoint (`l4export sample DIR --variant mobile --size bench`
writes one), and a float32 engine. All are loaded and measured in turn on one row of random tokens, so that other
programs on the machine slow all of them down alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from accuracy_level_quality import policies

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.runtimes.session import Session


def run(session: Session, ids: np.ndarray, prefill: int) -> tuple[float, float]:
    """Seconds of a prompt in one call, and of the rest token by token."""
    session.reset()
    began = time.perf_counter()
    session.append(ids[:prefill], last_only=True)
    middle = time.perf_counter()
    for at in range(prefill, len(ids)):
        session.append(ids[at : at + 1], last_only=True)
    return middle - began, time.perf_counter() - middle


def main() -> None:
    """Build, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--decode", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    sessions: dict[str, Session] = {}
    ids = np.random.default_rng(0).integers(0, 1000, given.prefill + given.decode)
    with tempfile.TemporaryDirectory() as work:
        for at, (name, policy) in enumerate({"float32": None, **policies((128, 32))}.items()):
            path = Path(work) / str(at)
            build(given.checkpoint, path, BuildOptions(policy=policy, max_context=len(ids)))
            sessions[name] = runtimes.load(path, given.threads).session(capacity=len(ids))
            run(sessions[name], ids[: given.prefill + 4], given.prefill)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
        for _ in range(given.repeats):
            for name, session in sessions.items():
                seconds[name].append(run(session, ids, given.prefill))
    print("| weights | prefill, tokens/s | decode, tokens/s |\n|---|---|---|")
    for name, runs in seconds.items():
        prefill, decode = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| {name} | {given.prefill / prefill:.1f} | {given.decode / decode:.2f} |")


if __name__ == "__main__":
    main()
