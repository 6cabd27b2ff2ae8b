"""The small models of `llmcompressor_record.json`: samples in bfloat16, as released checkpoints are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
from safetensors.numpy import load_file, save_file

from l4export.checkpoint.sample import write_sample

MODELS = {"scout-vision": ("scout", True), "maverick-vision": ("maverick", True), "scout-text": ("scout", False)}


def write(folder: Path) -> None:
    """All of them, in folders with their names."""
    for name in MODELS:
        write_model(name, folder / name)


def write_model(name: str, path: Path) -> Path:
    """One of `MODELS`."""
    variant, vision = MODELS[name]
    write_sample(path, variant, "tiny", seed=3, vision=vision)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(_in_bfloat16(config), indent=2) + "\n")
    weights = load_file(path / "model.safetensors")
    stored = {each: values.astype(ml_dtypes.bfloat16) for each, values in weights.items()}
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    return path


def _in_bfloat16(config: dict[str, Any]) -> dict[str, Any]:
    changed = {name: _in_bfloat16(value) if isinstance(value, dict) else value for name, value in config.items()}
    return changed | ({"dtype": "bfloat16"} if "dtype" in config else {})
