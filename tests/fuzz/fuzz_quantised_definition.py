"""What quantised weights are by the definition, column by column, from a file's own tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fuzz_files import Pieces, pieces_of

__all__ = ["check_weights"]

_NUMBERS = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}


def check_weights(path: Path, layers: tuple[int, int], by_definition: bool) -> None:
    """Of the layers that were built: all weights are finite, and what is quantised is what the definition says.

    `by_definition` is for a checkpoint whose config.json says what the tensors are.

    Raises:
        AssertionError: one is not.
    """
    from l4export.checkpoint import open_checkpoint
    from l4export.model.tensors import tensors
    from l4export.model.weight_names import layer_of

    checkpoint = open_checkpoint(path)
    found = {}
    for name, shape in tensors(checkpoint.config).items():
        layer = layer_of(name)
        if layer is None or layers[0] <= layer < layers[1]:
            found[name] = checkpoint.tensor(name, shape).read().astype(np.float32)
            assert np.isfinite(found[name]).all(), f"{name} is not finite, and was built"
    if by_definition:
        for name, values in _meant(path, list(found)).items():
            assert np.array_equal(found[name], values), f"{name} is not what the definition gives"


def _meant(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Those of the weights that are quantised."""
    pieces = pieces_of((path / "model.safetensors").read_bytes())
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    meant = {}
    for name in names:
        module, _, last = name.rpartition(".")
        if config["quant_method"] == "fbgemm_fp8":
            if f"{name}_scale" in pieces:
                scale = _array(pieces, f"{name}_scale")
                if last == "down_proj":
                    scale = scale.swapaxes(1, 2)
                meant[name] = _array(pieces, name).astype(np.float32) * scale.astype(np.float32)
            continue
        form = config["config_groups"]["group_0"]["weights"]
        if module.endswith(".experts"):
            each = ["down_proj"] if last == "down_proj" else ["gate_proj", "up_proj"]
            count = len({other.split(".experts.")[1].split(".")[0] for other in pieces if other.startswith(module)})
            experts = [[_linear(pieces, f"{module}.{e}.{linear}", form) for linear in each] for e in range(count)]
            meant[name] = np.stack([np.concatenate(matrices).T for matrices in experts])
        elif f"{module}.weight_scale" in pieces:
            meant[name] = _linear(pieces, module, form)
    return meant


def _linear(pieces: Pieces, module: str, form: dict[str, Any]) -> np.ndarray:
    """(code - zero point) x scale of every row and column of a layer [out, in]."""
    packed = f"{module}.weight_packed" in pieces
    scale = _array(pieces, f"{module}.weight_scale").astype(np.float32)
    bits = form["num_bits"]
    if packed:
        rows, columns = _array(pieces, f"{module}.weight_shape")
        codes = _unpacked(_array(pieces, f"{module}.weight_packed"), bits)[:, :columns]
    else:
        codes = _array(pieces, f"{module}.weight").astype(np.float32)
        rows, columns = codes.shape
    down, across = np.arange(rows), np.zeros(columns, int)
    if form["strategy"] == "group":
        across = np.arange(columns) // form["group_size"]
        if f"{module}.weight_g_idx" in pieces:
            index = _array(pieces, f"{module}.weight_g_idx")
            across = across if (index == -1).all() else index
    elif form["strategy"] == "block":
        down, across = down // form["block_structure"][0], np.arange(columns) // form["block_structure"][1]
    elif form["strategy"] == "tensor":
        scale, down = scale.reshape(1, 1), np.zeros(rows, int)
    zeros = np.zeros(scale.shape, np.float32)
    if f"{module}.weight_zero_point" in pieces:
        stored = _array(pieces, f"{module}.weight_zero_point")
        words = packed and form["strategy"] in ("group", "channel")
        zeros = _unpacked(stored.T, bits).T[:rows] if words else stored.astype(np.float32).reshape(scale.shape)
    return (codes - zeros[down][:, across]) * scale[down][:, across]


def _unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """[rows, n] -> float32 [rows, n * 32 / bits]."""
    parts = [(words.astype(np.int64) >> bits * place) & (2**bits - 1) for place in range(32 // bits)]
    return (np.stack(parts, axis=2).reshape(len(words), -1) - 2 ** (bits - 1)).astype(np.float32)


def _array(pieces: Pieces, name: str) -> np.ndarray:
    entry, data = pieces[name]
    return np.frombuffer(data, _NUMBERS[entry["dtype"]]).reshape(entry["shape"])
