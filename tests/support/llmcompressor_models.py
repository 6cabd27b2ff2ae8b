"""The models of `llmcompressor_record.json`."""

from __future__ import annotations

import sys
from pathlib import Path

from written_checkpoints import bfloat16_sample

MODELS = {"scout-vision": ("scout", True), "maverick-vision": ("maverick", True), "scout-text": ("scout", False)}


def write_models(folder: Path) -> Path:
    """All of them, in directories with their names."""
    for name, (variant, vision) in MODELS.items():
        bfloat16_sample(folder / name, variant, vision)
    return folder


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
