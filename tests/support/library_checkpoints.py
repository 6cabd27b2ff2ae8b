"""Checkpoints that the package compressed-tensors itself compresses, each with the float checkpoint that it stands for.

Scales and zero points are the package's own (`calculate_qparams` of the smallest and largest weights). What a layer
stands for is what the package makes of its tensors when scales are widened to float32, so that nothing is rounded.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import compress_module, decompress_module
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    initialize_module_for_quantization,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.numpy import load_file
from safetensors.torch import save_file

from quantised_checkpoints import EXPERTS, float_of, of_mlps
from workshop import copy_checkpoint, edit_config

__all__ = ["compressed_by_library"]


def compressed_by_library(source: Path, target: Path, args: dict[str, Any], form: str) -> tuple[Path, Path]:
    """A float checkpoint -> TARGET, whose experts and MLPs are quantised as linear layers with these `QuantizationArgs`
    and the compressor `form`, and TARGET-float, whose weights are those numbers in float32."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=form)
    found: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}

    def put(name: str, matrix: np.ndarray) -> np.ndarray:
        tensors, values = _compress(matrix, scheme)
        found.update({f"{name}.{each}": tensor.contiguous() for each, tensor in tensors.items()})
        return values.numpy()

    for name, weight in load_file(source / "model.safetensors").items():
        values = weight.astype(np.float32)
        match = EXPERTS.fullmatch(name)
        if not of_mlps(name):
            found[name] = torch.from_numpy(weight)
        elif match:
            linears = ("gate_proj", "up_proj") if match[2] == "gate_up_proj" else ("down_proj",)
            for e, expert in enumerate(weight):
                halves = np.split(expert.T, len(linears))
                made = [put(f"{match[1]}.{e}.{each}", half) for each, half in zip(linears, halves, strict=True)]
                values[e] = np.concatenate(made).T
        else:
            values = put(name.removesuffix(".weight"), weight)
        meant[name] = torch.from_numpy(values).contiguous()
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=form, quantization_status="compressed")
    return _written(source, target, found, config), _written(source, float_of(target), meant)


def _compress(matrix: np.ndarray, scheme: QuantizationScheme) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors of a linear layer [out, in], and the float32 matrix that they stand for."""
    module = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=torch.bfloat16)
    module.weight.data = torch.from_numpy(np.ascontiguousarray(matrix)).to(torch.bfloat16)
    initialize_module_for_quantization(module, scheme)
    blocks = _blocks(module.weight.data.float(), scheme.weights)
    scale, zero_point = calculate_qparams(blocks.amin((1, 3)), blocks.amax((1, 3)), scheme.weights)
    module.weight_scale.data = scale.reshape(module.weight_scale.shape).to(module.weight_scale.dtype)
    module.weight_zero_point.data = zero_point.reshape(scale.shape).to(module.weight_zero_point.dtype)
    compress_module(module)
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    wide = copy.deepcopy(module)
    wide.weight_scale.data = wide.weight_scale.data.float()
    decompress_module(wide)
    assert wide.weight.dtype == torch.float32
    return tensors, wide.weight.data.clone()


def _blocks(weight: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """The weight as [rows of blocks, rows, columns of blocks, columns]."""
    rows, columns = weight.shape
    high, wide = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "group": (1, args.group_size),
        "block": args.block_structure,
    }[args.strategy]
    return weight.reshape(rows // high, high, columns // wide, wide)


def _written(
    source: Path, target: Path, weights: dict[str, torch.Tensor], config: QuantizationConfig | None = None
) -> Path:
    copy_checkpoint(source, target)
    if config:
        edit_config(target, quantization_config=config.model_dump(mode="json"))
    save_file(weights, target / "model.safetensors")
    return target
