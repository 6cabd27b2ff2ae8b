"""Build time, decode and prefill speed of an int4 engine against llama.cpp's Q4_0 of the same checkpoint, side by side.

    l4export sample bench-scout --variant scout --size bench
    python tests/benchmarks/against_llama_cpp.py --work WORK --checkpoint bench-scout

llama.cpp is built from its source package in WORK, which takes a quarter of an hour once. Rounds alternate between the
two, so that a machine whose speed drifts slows both; figures are medians. Decode starts from an empty cache on both
sides. Every build begins when nothing is left to be written to the disk.

`decode_ratio_at_read_bandwidth` is how far decoding can be ahead at most: that of an engine of the same bytes a token
that reads them at the machine's whole read bandwidth, as measured in the same round, and takes no time for anything
else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from llama_cpp_peer import Peer, build_peer

from l4export import runtimes
from l4export.benchmark.decode_weights import decode_weight_bytes
from l4export.benchmark.memory import read_bandwidth
from l4export.model.tensors import parameter_count
from l4export.runtimes.engine import Engine
from l4export.runtimes.onnxruntime.huge_pages import restart_with_huge_pages


def build_seconds(checkpoint: Path, engine: Path) -> float:
    """A build as a user runs it: a process of its own."""
    os.sync()
    start = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "l4export",
        "build",
        str(checkpoint),
        "-o",
        str(engine),
        "--quant",
        "int4",
        "--json",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def speeds(engine: Engine, prefill: int, decode: int) -> tuple[float, float]:
    """Tokens per second of a prompt and of single tokens from an empty cache."""
    rng = np.random.default_rng(0)
    session = engine.session(capacity=max(prefill, decode))
    ids = rng.integers(0, engine.config.vocab_size, max(prefill, decode))
    start = time.perf_counter()
    session.append(ids[:prefill], last_only=True)
    middle = time.perf_counter()
    session.reset()
    begun = time.perf_counter()
    for token in ids[:decode]:
        session.append([int(token)], last_only=True)
    return prefill / (middle - start), decode / (time.perf_counter() - begun)


def compare(peer: Peer, checkpoint: Path, work: Path, rounds: int, threads: int, again: bool) -> dict[str, Any]:
    """Everything, measured in turn."""
    timings = peer.convert_and_quantize(checkpoint, again=again)
    ours: dict[str, list[float]] = {"build": [], "prefill": [], "decode": []}
    bandwidths = []
    theirs: dict[str, list[float]] = {"prefill": [], "decode": []}
    path = work / "l4export-int4"
    for turn in range(3):
        subprocess.run(["rm", "-rf", str(path)], check=True)
        ours["build"].append(build_seconds(checkpoint, path))
        print(f"build {turn + 1} of 3: {ours['build'][-1]:.1f} s", file=sys.stderr)
    engine = runtimes.load(path, threads)
    needed = decode_weight_bytes(ir.load(path / engine.manifest.decoder.file), engine.config)
    speeds(engine, 512, 8)
    for turn in range(rounds):
        figures = peer.measure(prefill=512, decode=64, threads=threads, repeats=1)
        prefill, decode = speeds(engine, 512, 64)
        ours["prefill"].append(prefill)
        ours["decode"].append(decode)
        for name, values in theirs.items():
            values.append(figures[name]["tokens_per_s"])
        bandwidths.append(read_bandwidth(threads))
        print(
            f"round {turn + 1} of {rounds}: {decode:.1f} against {theirs['decode'][-1]:.1f} tokens/s, "
            f"{bandwidths[-1] / needed:.1f} at the {bandwidths[-1] / 1e9:.1f} GB/s that can be read",
            file=sys.stderr,
        )
    size = sum(record.bytes for record in engine.manifest.files.values())
    middle = {
        f"{who} {name}": statistics.median(v)
        for who, d in (("ours", ours), ("theirs", theirs))
        for name, v in d.items()
    }
    return {
        "threads": threads,
        "load_average": os.getloadavg(),
        "build_ratio": timings["total_s"] / middle["ours build"],
        "decode_ratio": _median_ratio(ours["decode"], theirs["decode"]),
        "decode_ratio_at_read_bandwidth": _median_ratio([rate / needed for rate in bandwidths], theirs["decode"]),
        "prefill_ratio": _median_ratio(ours["prefill"], theirs["prefill"]),
        "read_bandwidth": statistics.median(bandwidths),
        "our_bytes_a_token": needed,
        "theirs build": timings["total_s"],
        **middle,
        "our_bits_per_weight": 8 * size / parameter_count(engine.config).total,
        "their_bits_per_weight": timings["bits_per_weight"],
    }


def _median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Of figures taken round by round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    """Parse, build, compare, print."""
    restart_with_huge_pages()  # as `l4export run` and `bench` do
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="convert and quantise with llama.cpp anew")
    arguments = parser.parse_args()
    peer = build_peer(arguments.work)
    result = compare(peer, arguments.checkpoint, arguments.work, arguments.rounds, arguments.threads, arguments.again)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
