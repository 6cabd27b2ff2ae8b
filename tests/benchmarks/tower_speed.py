"""How long the vision tower takes on this CPU, beside PyTorch's.

    l4export sample bench --variant guard --size bench --vision
    python tests/benchmarks/tower_speed.py bench [--tiles 1 5] [--repeats 5] [--threads 2]

builds engines with a tower in float32 and in int8 from a checkpoint, and measures them in turn with transformers'
`Llama4VisionModel` and projector in float32, so that other programs on the machine slow all of them down alike. Of each
number of tiles it prints medians in seconds, their ratios to PyTorch's, and the largest difference of features relative
to the largest one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from l4export import runtimes
from l4export.checkpoint import open_checkpoint
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.model.tensors import vision_tensors
from l4export.quantization.policy import Policy, Rule

Features = Callable[[np.ndarray], Any]

_INT8 = Policy(
    (Rule(("vision_model.model.layers.*_proj.weight", "vision_model.*.fc?.weight", "multi_modal_projector.*"), "int8"),)
)
"""Every matrix but the patch embedding, whose 588 columns no block divides; activations are rounded too."""


def engine(checkpoint: Path, path: Path, threads: int, policy: Policy | None) -> Features:
    """An engine's tower on ONNX Runtime."""
    build(checkpoint, path, BuildOptions(layers=(0, 1), max_context=256, policy=policy))
    loaded: Any = runtimes.load(path, threads)
    features: Features = loaded.image_features
    return features


def pytorch(path: Path) -> Features:
    """transformers' tower and projector with the checkpoint's weights, in float32."""
    from transformers import AutoConfig
    from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector, Llama4VisionModel

    config, checkpoint = AutoConfig.from_pretrained(path), open_checkpoint(path)
    modules = {
        "vision_model": Llama4VisionModel(config.vision_config),
        "multi_modal_projector": Llama4MultiModalProjector(config),
    }
    shapes = vision_tensors(checkpoint.vision_config(), checkpoint.config.hidden_size)
    for name, module in modules.items():
        weights = {
            key.removeprefix(f"{name}."): torch.from_numpy(
                checkpoint.vision_tensor(key, shape).read().astype(np.float32)
            )
            for key, shape in shapes.items()
            if key.startswith(f"{name}.")
        }
        module.eval().load_state_dict(weights)
    tower, projector = modules.values()

    def features(tiles: np.ndarray) -> Any:
        with torch.inference_mode():
            return projector(tower(torch.from_numpy(tiles)).last_hidden_state.flatten(0, 1)).numpy()

    return features


def main() -> None:
    """Build, compare the features, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    towers: dict[str, Features] = {"PyTorch float32": pytorch(given.checkpoint)}
    with tempfile.TemporaryDirectory() as work:
        for name, policy in (("float32", None), ("int8", _INT8)):
            towers[name] = engine(given.checkpoint, Path(work) / name, given.threads, policy)
        side = open_checkpoint(given.checkpoint).vision_config().image_size
        for count in given.tiles:
            tiles = np.random.default_rng(0).uniform(-1, 1, (count, 3, side, side)).astype(np.float32)
            measure(towers, tiles, given.repeats)
    print(f"load of the machine over the last minute: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def measure(towers: dict[str, Features], tiles: np.ndarray, repeats: int) -> None:
    """Print a line for each tower: its median, and how far its features are from the first tower's."""
    expected, errors = None, dict[str, float]()
    for name, features in towers.items():  # warms up, too
        rows = features(tiles)
        expected = rows if expected is None else expected
        errors[name] = float(np.abs(rows - expected).max() / np.abs(expected).max())
    seconds: dict[str, list[float]] = {name: [] for name in towers}
    for _ in range(repeats):
        for name, features in towers.items():
            began = time.perf_counter()
            features(tiles)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    base = next(iter(medians.values()))
    for name, median in medians.items():
        beside = f"{median / base:6.2f} of PyTorch's, error {errors[name]:.1e}"
        print(f"{len(tiles):3} tiles  {name:16}{median:8.3f} s  {beside}", flush=True)


if __name__ == "__main__":
    main()
