"""Perplexity and KL of `--quant auto` against uniform schemes at the same bits per weight, on held-out text.

    python tests/benchmarks/auto_table.py [--checkpoint DIR] [--text FILE] [--calibrated]

Each uniform policy is measured, and then the policy that auto chooses for exactly its bits per weight. Text, KL and
perplexity are those of quality_table.py; auto is chosen on the beginning of the text that l4export brings.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from quality_table import MATRICES, REST, ROOT, measure

from l4export.calibration.text import DEFAULT_TEXT
from l4export.compiler.auto_policy import PolicyChooser, WeightChoice
from l4export.compiler.build import build
from l4export.compiler.inputs import open_inputs
from l4export.compiler.options import BuildOptions
from l4export.inspection.graph_file import load_graph
from l4export.inspection.weight_bytes import bits_per_weight
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.runtimes.text.codec import TextCodec


def uniform_policies() -> dict[str, Policy | None]:
    """Every weight alike, and the standard policies."""
    rows: dict[str, Policy | None] = {}
    for block in (128, 64, 32):
        rows[f"int4 block {block} throughout"] = Policy((Rule((*MATRICES, *REST), "int4", block),))
    for block in (128, 64, 32):
        rows[f"--quant int4 --block-size {block}"] = standard_policy("int4", block)
    return rows


def main() -> None:
    """Build, score and print, pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "examples/kjv/model")
    parser.add_argument("--text", type=Path, default=ROOT / "examples/kjv/held_out.txt")
    parser.add_argument("--calibrated", action="store_true", help="calibrate the engines on the text l4export brings")
    arguments = parser.parse_args()
    text = DEFAULT_TEXT if arguments.calibrated else None
    options = BuildOptions(max_context=4096, calibrate=text, bits_per_weight=4.5)
    chooser = PolicyChooser(open_inputs(arguments.checkpoint, options), None, WeightChoice.of_engine(options))

    def score(policy: Policy | None) -> tuple[float, float, float]:
        """Bits per weight, perplexity, KL."""
        with tempfile.TemporaryDirectory() as work:
            options = BuildOptions(policy=policy, max_context=4096, calibrate=text if policy else None)
            config = build(arguments.checkpoint, Path(work) / "e", options).model
            bits = bits_per_weight(load_graph(Path(work) / "e"), config)
            result, kept = measure(Path(work) / "e", documents, reference or None)
        reference.extend(kept if policy is None else [])
        return bits, float(np.exp(result.nll / result.tokens)), result.kl / result.tokens

    codec = TextCodec.open(arguments.checkpoint)
    assert codec is not None, "the checkpoint needs a tokenizer"
    held_out = arguments.text.read_text(encoding="utf-8").strip().split("\n\n")
    documents = [[*codec.encode(document), *chooser.config.eos_token_ids[:1]] for document in held_out]
    reference: list[np.ndarray] = []
    print("| scheme | bits per weight | perplexity | KL | of the uniform | predicted, measured on the choosing text |")
    print("|---|---|---|---|---|---|", flush=True)
    print(f"| float32 | {score(None)[0]:.2f} | | | | |", flush=True)
    for name, policy in uniform_policies().items():
        bits, perplexity, kl = score(policy)
        print(f"| {name} | {bits:.2f} | {perplexity:.3f} | {kl:.5f} | | |", flush=True)
        auto = chooser.choose(bits)
        reached, perplexity, auto_kl = score(auto.policy)
        told = f"{auto.predicted_kl:.4f}, {auto.measured_kl:.4f}"
        print(
            f"| auto, {bits:.2f} | {reached:.2f} | {perplexity:.3f} | {auto_kl:.5f} | {auto_kl / kl:.2f} | {told} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
