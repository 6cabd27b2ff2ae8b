"""Processor time and peak memory of builds of the same model from each format of checkpoint, against the float path.

    python tests/benchmarks/format_speed.py [--runs 3] [--experts 4] [--quant none int4] [--place DIR]

A Scout of two layers with the widths of size `bench` (with 4 experts 0.6 GB in bfloat16) is written in every format.
Runs of the formats take turns, so that what else the computer does falls on all of them; medians. Processor seconds are
less those of a build of a tiny model, which is what starting takes. Every build reads equally many weights, so that
`x float` is the time of reading a weight over that of reading it from the checkpoint as transformers saves it. By the
bytes of the checkpoint (`s/GB`) quantised ones take longer: a byte of theirs is more weights, all of which are written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))

from adapters import pair, write_adapter
from meta_folders import write_meta_folder

from l4export.checkpoint.sample import hf_config, write_sample
from l4export.checkpoint.sample_files import write_files
from l4export.checkpoint.sample_formats import sample_format
from l4export.checkpoint.sample_weights import weights_of_sample
from l4export.storage.safetensors_writer import write_safetensors
from measured_process import Usage, measure
from quantised_checkpoints import load

BF16 = ml_dtypes.bfloat16
Build = tuple[Path, list[object]]
"""A checkpoint, and options of the build."""


def shapes(experts: int) -> dict[str, Any]:
    """The config.json of the model."""
    few = {"num_hidden_layers": 2, "moe_layers": [0, 1], "no_rope_layers": [1, 1], "vocab_size": 4096,
           "num_local_experts": experts, "bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 3}  # fmt: skip
    return hf_config("scout", "bench") | few


def sample(path: Path, raw: dict[str, Any], form: str) -> Path:
    """The model in one of the formats of samples."""
    stored, weights = sample_format(form, "bench"), weights_of_sample(raw)
    path.mkdir()
    (path / "config.json").write_text(json.dumps(raw | {"quantization_config": stored.config}))
    write_files(path, stored.entries(weights), stored.contents(weights, 0), 10**12, None)
    return path


def with_linear_experts(source: Path, path: Path, stacked: bool) -> Path:
    """The same floats with linear layers of experts, [out, in], one by one or stacked."""
    found: dict[str, np.ndarray] = {}
    for name, weight in load(source).items():
        module, _, tensor = name.rpartition(".")
        if not module.endswith(".experts"):
            found[name] = weight
            continue
        linears = ("gate_proj", "up_proj") if tensor == "gate_up_proj" else (tensor,)
        for linear, half in zip(linears, np.split(weight, len(linears), axis=2), strict=True):
            matrices = np.ascontiguousarray(half.swapaxes(1, 2))
            if stacked:
                found[f"{module}.{linear}.weight"] = matrices
            else:
                found |= {f"{module}.{expert}.{linear}.weight": matrix for expert, matrix in enumerate(matrices)}
    path.mkdir()
    shutil.copy(source / "config.json", path)
    entries = [(name, "BF16", values.shape) for name, values in found.items()]
    write_safetensors(path / "model.safetensors", entries, lambda name: [found[name]])
    return path


def adapter(path: Path, raw: dict[str, Any], rank: int = 16) -> Path:
    """LoRA of attention, and of all experts as parameters."""
    hidden, inner, experts = raw["hidden_size"], raw["intermediate_size"], raw["num_local_experts"]
    found = {}
    for layer in range(raw["num_hidden_layers"]):
        attention, module = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.feed_forward.experts"
        found |= pair(f"{attention}.q_proj", hidden, hidden, rank) | pair(f"{attention}.o_proj", hidden, hidden, rank)
        found |= pair(module, inner, hidden, rank * experts)
        found |= pair(f"{module}.base_layer", hidden, 2 * inner, rank * experts)
    return write_adapter(path, {name: values.astype(BF16) for name, values in found.items()}, r=rank)


def write_all(root: Path, experts: int) -> dict[str, Build]:
    """What is built, by the names of the formats."""
    raw = shapes(experts)
    plain = sample(root / "float", raw, "float")
    write_sample(root / "tiny", "scout", "tiny", 0)
    return {
        "tiny": (root / "tiny", []),
        "float": (plain, []),
        "experts one by one": (with_linear_experts(plain, root / "linear", stacked=False), []),
        "experts stacked": (with_linear_experts(plain, root / "stacked", stacked=True), []),
        "Meta .pth": (write_meta_folder(plain, root / "meta-1", 1), []),
        "float with adapter": (plain, ["--adapter", adapter(root / "adapter", raw)]),
        "fp8": (sample(root / "fp8", raw, "fp8"), []),
        "w4a16": (sample(root / "w4a16", raw, "w4a16"), []),
    }


def once(root: Path, build: Build, quant: str) -> Usage:
    """One build."""
    checkpoint, options = build
    command = [sys.executable, "-m", "l4export", "build", checkpoint, "-o", root / "e", "--quant", quant]
    silently = ["sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh"]
    usage = measure([*silently, *command, "--max-context", 1024, *options], root / "usage")
    shutil.rmtree(root / "e")
    if usage.exit_code:
        raise SystemExit(f"{checkpoint}: the build failed")
    return usage


def compare(root: Path, builds: dict[str, Build], quant: str, runs: int) -> None:
    """Print a line for each format."""
    used = {name: list[Usage]() for name in builds}
    for _ in range(runs):
        for name, build in builds.items():
            used[name].append(once(root, build, quant))
    seconds = {name: statistics.median(usage.seconds for usage in usages) for name, usages in used.items()}
    start = seconds.pop("tiny")
    print(f"\n--quant {quant}; starting takes {start:.2f} s")
    print(f"{'':20} {'GB read':>8} {'processor s':>12} {'x float':>8} {'s/GB':>6} {'peak MB':>8}")
    for name, taken in seconds.items():
        beyond, size = taken - start, sum(file.stat().st_size for file in builds[name][0].iterdir()) / 1e9
        peak = statistics.median(usage.peak for usage in used[name]) / 1e6
        ratio = beyond / (seconds["float"] - start)
        print(f"{name:20} {size:8.2f} {beyond:12.2f} {ratio:7.2f}x {beyond / size:6.2f} {peak:8.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--quant", nargs="+", default=["none", "int4"])
    parser.add_argument("--place", type=Path, help="directory for what is written, such as /dev/shm")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.place) as root:
        builds = write_all(Path(root), arguments.experts)
        for quant in arguments.quant:
            compare(Path(root), builds, quant, arguments.runs)
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
