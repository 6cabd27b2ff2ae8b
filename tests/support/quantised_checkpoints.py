"""Quantised checkpoints, written from the formats' definitions, each with the float checkpoint that it stands for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from l4export.storage.safetensors import TensorFile
from workshop import copy_checkpoint, edit_config

Weights = dict[str, np.ndarray]
F8 = ml_dtypes.float8_e4m3fn
EXPERTS = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Signed codes [rows, n] -> int32 [rows, n * bits / 32], code i of a word at bit i * bits, plus 2^(bits-1)."""
    a_word = 32 // bits
    filled = np.zeros((len(codes), -(-codes.shape[1] // a_word) * a_word), np.uint32)
    filled[:, : codes.shape[1]] = codes.astype(np.int64) + 2 ** (bits - 1)
    packed = np.zeros((len(codes), filled.shape[1] // a_word), np.uint32)
    for i in range(a_word):
        packed |= filled[:, i::a_word] << np.uint32(bits * i)
    return packed.view(np.int32)


@dataclass(frozen=True)
class Linears:
    """A way in which compressed-tensors stores a linear layer; `config` is that of its weights."""

    packed: bool = False
    bits: int = 8
    is_float: bool = False
    symmetric: bool = True
    strategy: str = "channel"
    group: int = 32
    block: tuple[int, int] = (24, 40)
    reordered: bool = False
    scale_dtype: Any = ml_dtypes.bfloat16

    def config(self) -> dict[str, Any]:
        """`quantization_config`, as llm-compressor writes it."""
        weights = {"num_bits": self.bits, "type": "float" if self.is_float else "int", "symmetric": self.symmetric,
                   "strategy": self.strategy, "group_size": self.group if self.strategy == "group" else None,
                   "block_structure": list(self.block) if self.strategy == "block" else None,
                   "actorder": "group" if self.reordered else None, "dynamic": False}  # fmt: skip
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {"quant_method": "compressed-tensors", "format": "by the tensors", "quantization_status": "compressed",
                "ignore": ["lm_head"], "config_groups": {"group_0": group}}  # fmt: skip

    def quantise(self, weight: np.ndarray) -> tuple[Weights, np.ndarray]:
        """A matrix [out, in] -> the layer's tensors, by their names in it, and the matrix that they stand for."""
        rows, columns = weight.shape
        spans = {"tensor": (rows, columns), "channel": (1, columns), "group": (1, self.group), "block": self.block}
        high, wide = spans[self.strategy]
        block_of_row, block_of_column = np.arange(rows) // high, np.arange(columns) // wide
        if self.reordered:
            block_of_column = np.random.default_rng(columns).permutation(block_of_column)
        counts = block_of_row[-1] + 1, block_of_column.max() + 1
        scales, zeros = np.zeros(counts, np.float32), np.zeros(counts, np.int64)
        top, bottom = (448, -448) if self.is_float else (2 ** (self.bits - 1) - 1, -(2 ** (self.bits - 1)))
        for i in range(counts[0]):
            for j in range(counts[1]):
                values = weight[block_of_row == i][:, block_of_column == j]
                low, up = min(values.min(), 0), max(values.max(), 0)
                scales[i, j] = np.abs(values).max() / top if self.symmetric else (up - low) / (top - bottom)
                zeros[i, j] = 0 if self.symmetric else np.clip(round(bottom - low / scales[i, j]), bottom, top)
        stored = scales.astype(self.scale_dtype)
        scale = stored.astype(np.float32)[block_of_row][:, block_of_column]
        zero = zeros[block_of_row][:, block_of_column]
        exact = np.clip(weight / scale + zero, bottom, top)
        codes = exact.astype(F8) if self.is_float else np.rint(exact).astype(np.int8)
        meant = (codes.astype(np.float32) - zero.astype(np.float32)) * scale
        one = self.strategy == "tensor"
        found: Weights = {"weight_scale": stored.reshape(1) if one else stored}
        found |= {"weight_packed": pack(codes, self.bits)} if self.packed else {"weight": codes}
        if self.packed:
            found["weight_shape"] = np.array(weight.shape, np.int64)
        if not self.symmetric and self.packed and not one:
            found["weight_zero_point"] = np.ascontiguousarray(pack(zeros.T, self.bits).T)
        elif not self.symmetric:
            found["weight_zero_point"] = zeros.astype(np.int8).reshape(found["weight_scale"].shape)
        if self.reordered:
            found["weight_g_idx"] = block_of_column.astype(np.int32)
        return found, meant


Choose = Callable[[str], bool]


def of_mlps(name: str) -> bool:
    """Experts, shared experts and dense MLPs: what the released checkpoints quantise, and nothing else."""
    return "feed_forward" in name and "router" not in name


def quantised(source: Path, target: Path, form: Linears, which: Choose = of_mlps) -> tuple[Path, Path]:
    """A float checkpoint -> TARGET, whose linear layers for which `which(name)` are quantised one by one, and
    TARGET-float, whose weights are those numbers in float32."""
    found: Weights = {}
    meant: Weights = {}

    def put(name: str, matrix: np.ndarray) -> np.ndarray:
        tensors, values = form.quantise(matrix)
        found.update({f"{name}.{each}": np.ascontiguousarray(tensor) for each, tensor in tensors.items()})
        return values

    for name, weight in load_file(source / "model.safetensors").items():
        meant[name] = weight.astype(np.float32)
        match = EXPERTS.fullmatch(name)
        if not which(name):
            found[name] = weight
        elif match:
            linears = ("gate_proj", "up_proj") if match[2] == "gate_up_proj" else ("down_proj",)
            for e, expert in enumerate(weight):
                halves = np.split(expert.T, len(linears))
                made = [put(f"{match[1]}.{e}.{each}", half) for each, half in zip(linears, halves, strict=True)]
                meant[name][e] = np.concatenate(made).T
        else:
            meant[name] = put(name.removesuffix(".weight"), weight)
    return written(source, target, found, form.config()), written(source, float_of(target), meant)


def quantised_by_fbgemm(source: Path, target: Path) -> tuple[Path, Path]:
    """The same in FP8 as transformers' fbgemm_fp8 has it: experts in one, and every linear layer of the decoder."""
    form = Linears(is_float=True, scale_dtype=np.float32)
    found: Weights = {}
    meant: Weights = {}
    for name, weight in load_file(source / "model.safetensors").items():
        found[name] = meant[name] = weight.astype(np.float32)
        if match := EXPERTS.fullmatch(name):
            layers = [form.quantise(np.ascontiguousarray(expert.T)) for expert in weight]
            found[name] = np.stack([np.ascontiguousarray(tensors["weight"].T) for tensors, _ in layers])
            scales = np.stack([tensors["weight_scale"] for tensors, _ in layers])  # [E, out, 1]
            found[f"{name}_scale"] = scales if match[2] == "down_proj" else scales.transpose(0, 2, 1).copy()
            meant[name] = np.stack([values.T for _, values in layers])
        elif name.endswith("_proj.weight"):
            tensors, meant[name] = form.quantise(weight)
            found |= {name: tensors["weight"], f"{name}_scale": tensors["weight_scale"]}
    config = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}
    return written(source, target, found, config), written(source, float_of(target), meant)


def load(path: Path) -> Weights:
    """The tensors of a checkpoint; safetensors' own function for NumPy knows no FP8."""
    file = TensorFile(path / "model.safetensors")
    return {name: file.array(entry).copy() for name, entry in file.entries.items()}


def float_of(target: Path) -> Path:
    return target.with_name(f"{target.name}-float")


def written(source: Path, target: Path, weights: Weights, config: dict[str, Any] | None = None) -> Path:
    """A checkpoint with everything of `source` but its weights, and with a `quantization_config`."""
    copy_checkpoint(source, target)
    if config:
        edit_config(target, quantization_config=config)
    save_file({name: np.ascontiguousarray(values) for name, values in weights.items()}, target / "model.safetensors")
    return target
