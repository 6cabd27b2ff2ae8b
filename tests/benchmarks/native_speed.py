"""The native runtime beside the Python one on an engine: prompt, decoding, start to first token, and memory.

    python tests/benchmarks/native_speed.py ENGINE L4RUN [--rounds 7]

Runs `l4run` and `l4export run` in turn, so that both see the same machine, and prints medians and their ratio. The
memory is the most that l4run had, less the bytes of the weights' files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime

FIGURES = ("prefill_tokens_per_second", "decode_tokens_per_second", "start_to_first_token_seconds")


def answer(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    first = document["load_seconds"] + document["time_to_first_token_seconds"]
    return {**document, "start_to_first_token_seconds": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("l4run", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", default="1")
    arguments = parser.parse_args()
    prompt = ",".join(str(5 + n % 200) for n in range(128))
    what = [str(arguments.engine), "--token-ids", prompt, "--max-new-tokens", "100", "--json"]
    what += ["--threads", arguments.threads]
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    environment = {**os.environ, "L4EXPORT_ONNXRUNTIME": str(library)}
    native, python = [], []
    for _ in range(arguments.rounds):
        native.append(answer([str(arguments.l4run), *what], environment))
        python.append(answer([sys.executable, "-m", "l4export", "run", *what], environment))
        assert native[-1]["token_ids"] == python[-1]["token_ids"]
    for figure in FIGURES:
        ours, theirs = (statistics.median(each[figure] for each in runs) for runs in (native, python))
        print(f"{figure}: native {ours:.4g}, Python {theirs:.4g}, ratio {ours / theirs:.3f}")
    weights = sum(file.stat().st_size for file in arguments.engine.glob("*.data"))
    most = max(each["peak_memory_bytes"] for each in native)
    print(f"memory of l4run beyond weights: {(most - weights) / 2**20:.1f} MiB of {most / 2**20:.1f}")


if __name__ == "__main__":
    main()
