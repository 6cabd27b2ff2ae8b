"""Checkpoints in bfloat16, as released ones are, and what becomes of a matrix that is written, in plain NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from meta_folders import write_meta_folder
from safetensors.numpy import load_file, save_file

from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.quantization.policy import Policy, Rule
from workshop import edit_config

TARGET = "compressed-tensors"
EXPERTS, ATTENTION = "model.layers.*.experts.*_proj", "model.layers.*.self_attn.o_proj.weight"
MATRICES = ("model.layers.*.feed_forward.*_proj.weight", EXPERTS, ATTENTION)
"""All that may be quantised: q, k and v may not."""


def bfloat16_sample(path: Path, variant: str, vision: bool = False, seed: int = 3) -> Path:
    """A tiny checkpoint whose numbers are bfloat16."""
    write_sample(path, variant, "tiny", seed=seed, vision=vision)
    weights = load_file(path / "model.safetensors")
    save_file({name: values.astype(ml_dtypes.bfloat16) for name, values in weights.items()}, path / "model.safetensors")
    raw = json.loads((path / "config.json").read_text())
    if "text_config" in raw:
        raw["text_config"]["dtype"] = raw["vision_config"]["dtype"] = "bfloat16"
    edit_config(path, **{**raw, "dtype": "bfloat16"})
    return path


def meta_sample(root: Path) -> tuple[Path, Path]:
    """A checkpoint that sees, with a vocabulary that has Meta's 2048 special tokens, and the same in Meta's layout."""
    path, rng = bfloat16_sample(root / "hf", "scout", vision=True), np.random.default_rng(0)
    weights = load_file(path / "model.safetensors")
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        more = rng.standard_normal((2048, weights[name].shape[1])).astype(ml_dtypes.bfloat16)
        weights[name] = np.concatenate([weights[name], more])
    save_file(weights, path / "model.safetensors")
    text = json.loads((path / "config.json").read_text())["text_config"]
    edit_config(path, text_config={**text, "vocab_size": 256 + 2048}, image_token_index=256 + 92)
    return path, write_meta_folder(path, root / "meta", 2)


def policy(kind: str = "int4", block: int | None = 32, *others: Rule) -> Policy:
    """All linear layers in one scheme, or those that no other rule names."""
    named = tuple(name for rule in others for name in rule.weights)
    return Policy((Rule(MATRICES, kind, None if kind == "fp8" else block, but=named), *others))


def write(source: Path, target: Path, quantised: Policy | None = None, **options: Any) -> Path:
    """A checkpoint for other programs, in INT4 unless a policy is given."""
    build(source, target, BuildOptions(target=TARGET, policy=quantised or policy(), **options))
    return target


def rounded(matrix: np.ndarray, kind: str, block: int, scale_dtype: Any) -> np.ndarray:
    """What is left of a matrix [out, in], in float32: by groups along `in`, or of FP8 by rows."""
    w = matrix.astype(np.float32)
    size = w.shape[1] if kind == "fp8" else block
    groups = w.reshape(len(w), -1, size)
    top = {"int4": 7, "int8": 127, "fp8": 448}[kind]
    scale = (np.abs(groups).max(-1, keepdims=True) / np.float32(top)).astype(scale_dtype).astype(np.float32)
    scale[scale == 0] = 1
    exact = groups * (np.float32(1) / scale)
    if kind == "fp8":
        codes = np.clip(exact, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    else:
        codes = np.clip(np.rint(exact), -top - 1, top)
    return (codes * scale).reshape(w.shape)
