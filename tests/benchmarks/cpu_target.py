"""The targets `cpu` and `ort-cpu` on one model: decoding, prompts, opening and private memory, in turn.

    l4export sample bench --variant scout --size bench
    l4export build bench -o ours --target cpu --quant int4
    l4export build bench -o theirs --target ort-cpu --quant int4
    python tests/benchmarks/cpu_target.py ours theirs [--rounds 5] [--threads 2] [--prefill 512] [--decode 64]

Each round measures both by `l4export bench`, and opens them, in processes of their own, because threads that wait for
work would take the other's cores. Prints the median of each figure, and the median and range of the rounds' ratios:
other work on the machine strikes both of a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

FIGURES = {
    "decode_tokens_per_second": "decoding, tokens/s",
    "decode_bandwidth_share": "decoding, of the read rate",
    "prefill_tokens_per_second": "prompt, tokens/s",
    "opening_seconds": "opening, s",
    "opening_cpu_seconds": "opening, s of CPU time",
    "opened_private_megabytes": "private memory of an opened engine, MB",
}

OPENING = """
import json, sys, time
import numpy, onnxruntime
from l4export import runtimes
from l4export.benchmark.memory import process_memory
from l4export.runtimes.onnxruntime.engine import OnnxRuntimeEngine
before, wall, cpu = process_memory()["RssAnon"], time.perf_counter(), time.process_time()
engine = runtimes.load(sys.argv[1], threads=int(sys.argv[2]))
print(json.dumps({
    "opening_seconds": time.perf_counter() - wall,
    "opening_cpu_seconds": time.process_time() - cpu,
    "opened_private_megabytes": (process_memory()["RssAnon"] - before) / 1e6,
}))
"""


def measured(engine: Path, options: argparse.Namespace) -> dict[str, float]:
    """The report of `l4export bench`, and what opening the engine alone took."""
    sizes = [f"--{name}={getattr(options, name)}" for name in ("threads", "prefill", "decode")]
    bench = ["-m", "l4export", "bench", str(engine), "--repeats", "1", "--json", *sizes]
    reports = [
        subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout
        for arguments in (bench, ["-c", OPENING, str(engine), options.threads])
    ]
    found: dict[str, float] = {**json.loads(reports[0])["details"], **json.loads(reports[1])}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("theirs", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    for name, default in (("threads", "2"), ("prefill", "512"), ("decode", "64")):
        parser.add_argument(f"--{name}", default=default)
    arguments = parser.parse_args()
    rounds = []
    for number in range(arguments.rounds):
        order = (arguments.ours, arguments.theirs)
        found = {engine: measured(engine, arguments) for engine in (order if number % 2 == 0 else order[::-1])}
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
