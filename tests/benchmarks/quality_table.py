"""Perplexity and KL of every quantisation scheme against the float engine, on a model with real language in it.

    python tests/benchmarks/quality_table.py [--checkpoint DIR] [--text FILE] [--calibrate FILE] [--markdown FILE]

Documents of the text are separated by blank lines; each is scored on its own from the begin-of-text token on. KL is
KL(float engine || quantised engine) in nats a token. Bits per weight count codes, scales and zero points of everything
that is stored.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from l4export import runtimes
from l4export.calibration.text import DEFAULT_TEXT
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.model.tensors import parameter_count
from l4export.quantization.policy import Policy, Rule, standard_policy

ROOT = Path(__file__).parents[2]
MATRICES = ("model.layers.*_proj.weight", "model.layers.*.experts.*_proj")
REST = ("lm_head.weight", "model.embed_tokens.weight")


def policies() -> dict[str, Policy | None]:
    """Every scheme worth a row: block sizes, symmetric or not, float or int8 activations, and the standard policies."""
    rows: dict[str, Policy | None] = {"float32": None}
    for kind in ("int8", "int4"):
        for symmetric in (True, False):
            for block in (128, 64, 32, 16):
                rules = (Rule(MATRICES, kind, block, symmetric), Rule(REST, "int8"))
                rows[f"{kind} block {block}{'' if symmetric else ' asymmetric'}"] = Policy(rules, accuracy_level=1)
    for block in (128, 64, 32):
        rules = (Rule(MATRICES, "int4", block, fitted=True), Rule(REST, "int8"))
        rows[f"int4 block {block}, fitted"] = Policy(rules, accuracy_level=1)
    rows["int4 block 32, head int4 too"] = Policy((Rule((*MATRICES, *REST), "int4", 32),), accuracy_level=1)
    rows["fp8 channel"] = standard_policy("fp8")
    rows["fp8 128x128"] = standard_policy("fp8", 128)
    for quant in ("int8", "int4"):
        rows[f"--quant {quant} (int8 activations)"] = standard_policy(quant)
    rows["--quant int4 --block-size 32 (int8 activations)"] = standard_policy("int4", 32)
    return rows


def calibrated_policies() -> dict[str, Policy | None]:
    """Those that are calibrated too, with float activations."""
    names = [*(f"int4 block {block}" for block in (128, 64, 32, 16)), "int4 block 32 asymmetric", "int8 block 128"]
    kept = {name: policy for name, policy in policies().items() if name in names}
    return {f"{name}, calibrated": policy for name, policy in kept.items()}


def rows(calibrate: Path) -> dict[str, BuildOptions]:
    """What is built for each row of the table; `calibrate` is the text for those that are calibrated."""
    fp8 = BuildOptions(target="onnx", policy=standard_policy("fp8"), max_context=4096)
    return {
        **{name: BuildOptions(policy=policy, max_context=4096) for name, policy in policies().items()},
        "fp8 channel, fp8 activations": replace(fp8, activations="fp8", calibrate=calibrate),
        **{
            name: BuildOptions(policy=policy, max_context=4096, calibrate=calibrate)
            for name, policy in calibrated_policies().items()
        },
    }


@dataclass
class Score:
    """Sums over tokens: negative log likelihood and KL in nats."""

    tokens: int = 0
    nll: float = 0.0
    kl: float = 0.0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [tokens, vocab] -> float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def measure(
    engine_path: Path, documents: list[list[int]], reference: list[np.ndarray] | None
) -> tuple[Score, list[np.ndarray]]:
    """Score one engine; `reference` holds the float engine's log probabilities of each document."""
    engine, score, kept = runtimes.load(engine_path), Score(), []
    for at, ids in enumerate(documents):
        predicted = log_softmax(engine.session(capacity=len(ids)).append(ids)[0])[:-1]
        score.tokens += len(predicted)
        score.nll -= float(predicted[np.arange(len(predicted)), ids[1:]].sum())
        if reference is None:
            kept.append(predicted.astype(np.float32))
        else:
            expected = reference[at].astype(np.float64)
            score.kl += float((np.exp(expected) * (expected - predicted)).sum())
    return score, kept


def main() -> None:
    """Build, score and print, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "examples/kjv/model")
    parser.add_argument("--text", type=Path, default=ROOT / "examples/kjv/held_out.txt")
    parser.add_argument("--calibrate", type=Path, default=DEFAULT_TEXT, help="what calibrated rows are calibrated on")
    parser.add_argument("--markdown", type=Path, help="write the table into this file too")
    arguments = parser.parse_args()
    lines = ["| scheme | bits per weight | perplexity | against float | KL |", "|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    documents: list[list[int]] = []
    reference: list[np.ndarray] | None = None
    base = 0.0
    for name, options in rows(arguments.calibrate).items():
        with tempfile.TemporaryDirectory() as work:
            manifest = build(arguments.checkpoint, Path(work) / "e", options)
            if reference is None:
                codec = runtimes.load(Path(work) / "e").text
                assert codec is not None, "the checkpoint needs a tokenizer"
                held_out = arguments.text.read_text(encoding="utf-8").strip().split("\n\n")
                documents = [[*codec.encode(document), *manifest.model.eos_token_ids[:1]] for document in held_out]
            score, kept = measure(Path(work) / "e", documents, reference)
        reference = reference or kept
        perplexity = float(np.exp(score.nll / score.tokens))
        base = base or perplexity
        size = sum(record.bytes for file, record in manifest.files.items() if file.endswith(".data"))
        if options.target == "ort-cpu":
            size -= 2 * 4096 * manifest.model.head_dim // 2 * 4  # rotation tables are no weights
        bits = 8 * size / parameter_count(manifest.model).total
        change = 100 * (perplexity / base - 1)
        row = f"| {name} | {bits:.2f} | {perplexity:.3f} | {change:+.2f} % | {score.kl / score.tokens:.5f} |"
        lines.append(row)
        print(row, flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
