"""Perplexity and KL of every KV dtype against the float cache, on a model with real language in it.

    python tests/benchmarks/kv_quality_table.py [--checkpoint DIR] [--text FILE] [--kv-layout LAYOUT] [--markdown FILE]

Scored as in quality_table.py. int8 and int4 are calibrated twice: on the text that comes with l4export, which is of
the example's kind, and on text that the float engine wrote itself (seeded sampling).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from quality_table import ROOT, measure

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.kv_cache import KV_DTYPES
from l4export.runtimes.sampling.settings import Sampling

CONTEXT = 4096


def own_text(engine: runtimes.Engine, rows: int = 8, tokens: int = 256) -> str:
    """Token ids of some texts that the model writes from the begin-of-text token on, one after the other."""
    start = engine.config.bos_token_id
    assert start is not None, "the checkpoint needs a begin-of-text token"
    steps = list(engine.generate_batch([[start]] * rows, tokens - 1, Sampling(temperature=1.0, seed=0)))
    written = [[start, *(step[row] for step in steps if step[row] is not None)] for row in range(rows)]
    return " ".join(str(token) for row in written for token in row)


def rows(own: Path) -> Iterator[tuple[str, str, Path | None]]:
    """KV dtype, calibration text by name, and as a file."""
    for dtype in KV_DTYPES:
        if dtype.startswith("fp"):
            yield dtype, "", None
        else:
            yield dtype, "default", None
            yield dtype, "the model's own", own


def main() -> None:
    """Build, score and print, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "examples/kjv/model")
    parser.add_argument("--text", type=Path, default=ROOT / "examples/kjv/held_out.txt")
    parser.add_argument("--kv-layout", default="static")
    parser.add_argument("--markdown", type=Path, help="write the table into this file too")
    arguments = parser.parse_args()
    lines = ["| KV dtype | calibration | bytes a token | perplexity | against fp32 | KL |", "|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as work:
        own, reference, base = Path(work) / "own.txt", None, 0.0
        for number, (dtype, text, kv_calibrate) in enumerate(rows(own)):
            path = Path(work) / str(number)
            options = BuildOptions(
                kv_layout=arguments.kv_layout, max_context=CONTEXT, kv_dtype=dtype, kv_calibrate=kv_calibrate
            )
            model = build(arguments.checkpoint, path, options).model
            if reference is None:
                engine = runtimes.load(path)
                assert engine.text is not None, "the checkpoint needs a tokenizer"
                own.write_text(own_text(engine), encoding="utf-8")
                parts = arguments.text.read_text(encoding="utf-8").strip().split("\n\n")
                documents = [[*engine.text.encode(part), *model.eos_token_ids[:1]] for part in parts]
            score, kept = measure(path, documents, reference)
            reference = reference or kept
            perplexity = float(np.exp(score.nll / score.tokens))
            base = base or perplexity
            size = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * KV_DTYPES[dtype] // 8
            change, kl = 100 * (perplexity / base - 1), score.kl / score.tokens
            lines.append(f"| {dtype} | {text} | {size} | {perplexity:.3f} | {change:+.2f} % | {kl:.5f} |")
            print(lines[-1], flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
