"""What rounding activations to int8 (accuracy level 4) costs in quality, beside float activations (level 1).

    python tests/benchmarks/accuracy_level_quality.py [--checkpoint DIR] [--text FILE] [--blocks 128 64 32]

builds --quant int8 and int4 with several block sizes at both levels, and prints what `l4export quality` finds on the
text: the perplexity ratio and KL against the float32 reference, with 95 % confidence intervals. The default is the
example; `smollm2.py` makes a checkpoint and a text of another kind.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path

from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.quality.measure import measure_quality
from l4export.quantization.policy import Policy, standard_policy

ROOT = Path(__file__).parents[2]


def policies(blocks: Iterable[int]) -> dict[str, Policy]:
    """Both standard policies of integers in these block sizes at both levels, by name."""
    rows = {}
    for quant in ("int8", "int4"):
        for block in blocks:
            policy = standard_policy(quant, block)
            assert policy is not None
            for level in (1, 4):
                rows[f"{quant} block {block}, level {level}"] = dataclasses.replace(policy, accuracy_level=level)
    return rows


def main() -> None:
    """Build, measure and print, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "examples/kjv/model")
    parser.add_argument("--text", type=Path, default=ROOT / "examples/kjv/held_out.txt")
    parser.add_argument("--blocks", type=int, nargs="+", default=[128, 64, 32])
    given = parser.parse_args()
    print("| weights | perplexity ratio | KL |\n|---|---|---|", flush=True)
    for name, policy in policies(given.blocks).items():
        with tempfile.TemporaryDirectory() as work:
            build(given.checkpoint, Path(work) / "e", BuildOptions(policy=policy, max_context=1024))
            report = measure_quality(Path(work) / "e", given.checkpoint, given.text, breakdown=False)
        print(f"| {name} | {report.perplexity_ratio:.4f} | {report.kl:.5f} |", flush=True)


if __name__ == "__main__":
    main()
