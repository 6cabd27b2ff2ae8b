"""The targets `cpu` and `ort-cpu` on one model: decoding, prompts, opening and private memory, in turn.

    l4export sample bench --variant scout --size bench
    l4export build bench -o ours --target cpu --quant int4
    l4export build bench -o theirs --target ort-cpu --quant int4
    python tests/benchmarks/cpu_target.py ours theirs [--rounds 5] [--threads 2] [--prefill 512] [--decode 64]

Each round measures both by `l4export bench`, in processes of their own, because threads that wait for work would take
the other's cores. Prints the median of each figure, and the median and range of the rounds' ratios: other work on the
machine strikes both of a round.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

FIGURES = {
    "decode_tokens_per_second": "decoding, tokens/s",
    "decode_bandwidth_share": "decoding, of the read rate",
    "prefill_tokens_per_second": "prompt, tokens/s",
    "load_seconds": "opening, s",
    "resident_private_bytes": "private memory, MB",
    "cpu_seconds": "CPU time of it all, s",
}


def measured(engine: Path, options: list[str]) -> dict[str, float]:
    """The report of `l4export bench`, and the CPU time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "l4export", "bench", str(engine), "--repeats", "1", "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report: dict[str, float] = json.loads(done.stdout)
    report["resident_private_bytes"] /= 1e6
    report["cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("theirs", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    for name, default in (("threads", "2"), ("prefill", "512"), ("decode", "64")):
        parser.add_argument(f"--{name}", default=default)
    arguments = parser.parse_args()
    options = [f"--{name}={getattr(arguments, name)}" for name in ("threads", "prefill", "decode")]
    rounds = []
    for number in range(arguments.rounds):
        order = (arguments.ours, arguments.theirs)
        found = {engine: measured(engine, options) for engine in (order if number % 2 == 0 else order[::-1])}
        rounds.append([found[engine] for engine in order])
    print(
        f"| {arguments.rounds} rounds, {arguments.threads} threads | ours | theirs | ratio (range) |\n|---|---|---|---|"
    )
    for figure, name in FIGURES.items():
        ours, theirs = (statistics.median(pair[i][figure] for pair in rounds) for i in (0, 1))
        ratios = sorted(pair[0][figure] / pair[1][figure] for pair in rounds)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        print(f"| {name} | {ours:.3g} | {theirs:.3g} | {spread} |")


if __name__ == "__main__":
    main()
