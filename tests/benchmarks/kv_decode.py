"""Decode time a token and bytes of keys and values at growing contexts, by KV layout and dtype.

    python tests/benchmarks/kv_decode.py CHECKPOINT [--layouts static chunked] [--kv-dtypes fp32 int8]
        [--contexts 1024 8192] [--quant int4] [--engine DIR]... [--threads N] [--json FILE] [--plot FILE]

Builds an engine of each layout and dtype, or takes those that are there (`--engine`). Caches are filled with random
keys and values, which take as long as real ones, up to a few tokens before the context; then single tokens are fed and
timed.
The plot (SVG or PNG, by its name) needs matplotlib.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.kv_cache import KV_DTYPES
from l4export.quantization.policy import standard_policy
from l4export.runtimes.cache.chunks import Chunks
from l4export.runtimes.cache.kv_cache import CacheSpec
from l4export.runtimes.engine import Engine
from l4export.runtimes.session import Session
from l4export.runtimes.session_state import SessionState
from l4export.runtimes.token_history import TokenHistory

CONTEXTS = (1024, 8192, 32768, 131072)
WARM_UP = 3


@dataclass(frozen=True)
class Row:
    """One engine at one context: milliseconds a token (median, lowest) and bytes of its buffers."""

    layout: str
    kv_dtype: str
    quant: str
    context: int
    ms_per_token: float
    lowest_ms: float
    kv_bytes: int


def filled(engine: Engine, length: int, capacity: int) -> Session:
    """A session of one row that holds `length` tokens nobody has computed."""
    chunks, spec = Chunks(engine.manifest.prefill_cut, np.zeros(1, np.int64)), CacheSpec.of(engine.manifest)
    chunks.write(0, length - 1)
    state = SessionState(
        capacity, np.asarray([length]), chunks.starts, chunks.held, ((),), (TokenHistory([0] * length),)
    )
    noise = np.random.default_rng(0).uniform(0, 8, (spec.heads, length, spec.width)).astype(spec.dtype)
    tokens = [noise[:, :count] for _, count, _ in spec.shapes(length, chunks.used(0, length))]
    return Session.restored(engine.new_cache, engine.manifest, state, [tokens])


def measure(engine: Engine, contexts: Iterable[int], steps: int) -> Iterable[Row]:
    """Times the last `steps` tokens before each context."""
    precision = engine.manifest.precision
    for context in contexts:
        session = filled(engine, context - steps - WARM_UP, context)
        seconds = []
        for token in range(steps + WARM_UP):
            began = time.perf_counter()
            session.append([token % engine.config.vocab_size], last_only=True)
            seconds.append(time.perf_counter() - began)
        timed = [1000 * second for second in seconds[WARM_UP:]]
        names = engine.manifest.kv_layout, precision["kv_cache"], precision["quant"]
        yield Row(*names, context, statistics.median(timed), min(timed), session.kv_bytes)


def plot(rows: list[Row], path: Path) -> None:
    """Time and bytes against the context, one line an engine."""
    import matplotlib

    matplotlib.use("Agg")
    # the same rows give the same bytes
    matplotlib.rcParams.update({"svg.hashsalt": "kv_decode", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for name in dict.fromkeys((row.layout, row.kv_dtype) for row in rows):
        line = [row for row in rows if (row.layout, row.kv_dtype) == name]
        contexts = [row.context for row in line]
        left.plot(contexts, [row.ms_per_token for row in line], marker="o", label=" ".join(name))
        right.plot(contexts, [row.kv_bytes / 2**20 for row in line], marker="o", label=" ".join(name))
    for axes, title in ((left, "ms a token"), (right, "MiB of keys and values")):
        axes.set(title=title, xlabel="context, tokens", xscale="log", ylim=(0, None))
        axes.set_xticks([row.context for row in line], [f"{row.context:,}" for row in line])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--layouts", nargs="*", default=["static", "chunked"])
    parser.add_argument("--kv-dtypes", nargs="*", default=["fp32"], choices=list(KV_DTYPES))
    parser.add_argument("--contexts", nargs="+", type=int, default=list(CONTEXTS))
    parser.add_argument("--quant", default="none")
    parser.add_argument("--engine", action="append", type=Path, default=[], help="an engine that is there; repeatable")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if min(arguments.contexts) <= arguments.steps + WARM_UP:
        sys.exit(f"--contexts: more than {arguments.steps + WARM_UP} tokens, which are the ones that are timed")
    rows: list[Row] = []
    print("| layout | KV dtype | weights | context | ms a token | lowest | KV MiB |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        engines = list(arguments.engine)
        for layout, kv_dtype in itertools.product(arguments.layouts, arguments.kv_dtypes):
            policy, context = standard_policy(arguments.quant, None), max(arguments.contexts)
            options = BuildOptions(kv_layout=layout, max_context=context, policy=policy, kv_dtype=kv_dtype)
            engines.append(Path(work) / f"{layout}-{kv_dtype}")
            build(arguments.checkpoint, engines[-1], options)
        for path in engines:
            for row in measure(runtimes.load(path, arguments.threads), arguments.contexts, arguments.steps):
                rows.append(row)
                print(
                    f"| {row.layout} | {row.kv_dtype} | {row.quant} | {row.context:,} | {row.ms_per_token:.3f} | "
                    f"{row.lowest_ms:.3f} | {row.kv_bytes / 2**20:.2f} |",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
