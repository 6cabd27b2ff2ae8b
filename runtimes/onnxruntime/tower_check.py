"""Judges a GPU by an engine's vision tower, before it is trusted with it.

The tower's graph has no form that a CPU cannot run, so the whole of it is compared, with this machine's CPU, on seeded
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from l4export.engine.manifest import VISION, Manifest
from l4export.errors import EnvironmentLacks
from l4export.runtimes.onnxruntime.verdicts import has_passed, keep_pass
from l4export.runtimes.onnxruntime.vision_tower import Compute

__all__ = ["ACCEPTED", "trust_tower"]

ACCEPTED = {"fp32": 1e-3, "fp16": 2e-2}
"""Of the largest |feature|. An H200 departed from a CPU by 1.3e-5 and by 8.7e-4 of it with two layers; float16 has 11
bits, and what a layer rounds the next one takes up. A rotation with exchanged axes changes features by 0.4 of it, and
patches in another order by 1 (towers of transformers, changed by hand)."""

_REMEDY = "use another version of onnxruntime-gpu or of the driver, or look at images with --provider cpu"


def trust_tower(
    directory: Path,
    manifest: Manifest,
    installation: Mapping[str, str],
    on_card: Compute,
    load_on_cpu: Callable[[], Compute],
) -> None:
    """Compare a tower on a GPU with the CPU, unless it has passed on this installation.

    Args:
        directory: The engine.
        manifest: The engine's.
        installation: All else that decides the numbers: card, driver, packages.
        on_card: The tower on the GPU.
        load_on_cpu: Loads it on the CPU; called once, or not at all.

    Raises:
        EnvironmentLacks: the GPU computes something else.
        InputError: the CPU cannot load the tower.
    """
    key = {"engine": manifest.sha256, "graph": VISION, **installation}
    if has_passed(key):
        return
    assert manifest.vision is not None
    side, accepted = manifest.vision.image_size, ACCEPTED[manifest.precision[VISION]]
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    expected = load_on_cpu()(pixels).astype(np.float32)
    for tiles in (1, 2):  # other numbers of rows have other kernels
        got = on_card(pixels[:tiles]).astype(np.float32)
        due = expected[: tiles * len(expected) // len(pixels)]
        difference = np.abs(got - due).max() / np.abs(expected).max(initial=1e-6)
        if not difference <= accepted:
            raise EnvironmentLacks(
                f"{directory}: {installation.get('card', 'the GPU')} computes the vision tower differently from the "
                f"CPU, by {difference:.2g} of the largest feature with {tiles} tiles; {_REMEDY}"
            )
    keep_pass(key)
