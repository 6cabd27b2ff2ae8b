"""Seeded checkpoints, the engines built from them, and what else many tests share."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from l4export import runtimes
from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.kv_cache import KV_BITS
from l4export.reference.transformers_model import HFReference
from l4export.runtimes.engine import Engine

VARIANTS = ("scout", "maverick", "guard", "mobile", "scout-top2", "maverick-top2")
LAYOUTS = ("concat", "static", "chunked")

ROOT = Path(__file__).parents[2]
"""The repository."""


class Workshop:
    """Makes tiny checkpoints, engines and references, and remembers them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = cache(self._checkpoint)
        self.engine_path = cache(self._engine_path)
        self.engine: Callable[..., Engine] = cache(lambda *key: runtimes.load(self.engine_path(*key), threads=1))
        self.reference = cache(lambda variant: HFReference(self.checkpoint(variant)))
        self._greedy = cache(lambda variant, prompt, count: self.reference(variant).greedy(prompt, count))

    def greedy(self, variant: str, prompt: list[int], count: int) -> list[int]:
        """What transformers says after `prompt`."""
        tokens: list[int] = self._greedy(variant, tuple(prompt), count)
        return tokens

    def _checkpoint(self, variant: str) -> Path:
        path = self.root / variant
        name, _, top = variant.partition("-top")
        write_sample(path, name, "tiny", seed=3)
        if top:
            edit_config(path, num_experts_per_tok=int(top))
        return path

    def _engine_path(self, variant: str, layout: str, max_context: int = 256, kv_dtype: str = "fp32") -> Path:
        path = self.root / f"{variant}-{layout}-{max_context}-{kv_dtype}"
        (ids := self.root / "calibration_ids").write_text(" ".join(map(str, random_ids(1000, seed=99))))
        kv_calibrate = ids if kv_dtype in KV_BITS else None
        options = BuildOptions(kv_layout=layout, max_context=max_context, kv_dtype=kv_dtype, kv_calibrate=kv_calibrate)
        build(self.checkpoint(variant), path, options)
        return path


def edit_config(checkpoint: Path, **changes: Any) -> None:
    """Change top-level fields of a checkpoint's config.json; None removes nothing, it writes null."""
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copy_checkpoint(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def random_ids(shape: int | tuple[int, ...], vocab: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, shape, dtype=np.int64)


def assert_close(got: np.ndarray, expected: np.ndarray, relative: float = 1e-4) -> None:
    """max |difference| <= relative * max |expected|; NaN fails. float32 in another order of summation gives 1e-6."""
    worst = np.abs(got - expected).max()
    assert worst <= relative * np.abs(expected).max(), f"max |difference| {worst:.3g}"


def hear_ctrl_c() -> None:
    """To be called in a new process: what a shell starts in its background ignores Ctrl-C, and so does all within."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
