"""The tensors of the written checkpoint, as recipes.

For a linear layer with a weight [out, in], in groups of g along `in`:

    weight_packed  int32 [out, in * bits / 32]   codes q + 2^(bits - 1), the first in a word's lowest bits
    weight_scale   [out, in / g]                 weight = q * scale
    weight_shape   int64 [2]                     [out, in]

or for FP8 `weight` [out, in] and `weight_scale` [out, 1], or `weight` alone, in floats. Each expert has linear layers
of its own, `experts.{e}.gate_proj`, `up_proj` and `down_proj`, quantised or not: that is what loaders of this format
make of a model's experts.

A layer's experts are one weight of the inventory, [experts, in, out], gates and ups side by side. Its transpose
[experts, out, in] has the matrices of these linear layers one behind the other, and so have its codes and its scales.
So they are quantised and written together, as one `Region`, and it is only the names that take it apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from l4export.checkpoint import StoredWeight
from l4export.model.tensors import tensors, vision_tensors
from l4export.model.weight_names import kind_of
from l4export.quantization.kept_codes import kept_weight
from l4export.quantization.offset_codes import OffsetCodes
from l4export.quantization.schemes import Scheme
from l4export.quantization.weights import CodedWeight, GivenWeight, QuantizedWeight, source_of
from l4export.targets.checkpoint_target import CheckpointRequest
from l4export.weights.recipes import Cast, Constant, Recipe, Source, Transpose

__all__ = ["Region", "regions_of"]

_DTYPES = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16"}

_OF_EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""A weight of the inventory -> the linear layers of an expert that it has side by side."""


@dataclass(frozen=True)
class Region:
    """Tensors of one dtype and shape, one behind the other in a file.

    Attributes:
        recipe: Their bytes.
        names: Of the tensors, in order.
        dtype: As safetensors spells it.
        shape: Of each tensor.
    """

    recipe: Recipe
    names: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]


def regions_of(request: CheckpointRequest, schemes: Mapping[str, Scheme]) -> list[list[Region]]:
    """Every tensor of the checkpoint, weight by weight in the order in which a token meets them, the tower's first."""
    found: list[list[Region]] = []
    if request.vision is not None:
        for name, shape in vision_tensors(request.vision, request.config.hidden_size).items():
            source = request.tower_weight(name, shape)
            found.append([_floats((name,), shape, source, _float_dtype(source, request))])
    for name, shape in tensors(request.config).items():
        found.append(_of_weight(name, shape, schemes.get(name), request))
    return found


def _of_weight(name: str, shape: tuple[int, ...], scheme: Scheme | None, request: CheckpointRequest) -> list[Region]:
    """What is stored of one weight of the inventory."""
    source = request.weight(name, shape)
    dtype, recipe = _float_dtype(source, request), _fitted(name, source, request)
    module = request.prefix + name.removesuffix(".weight")
    modules: tuple[str, ...] = (module,)
    matrix = shape
    if len(shape) == 3:
        recipe = Transpose(recipe, (0, 2, 1))
        experts, linear = module.rsplit(".", 1)
        modules = tuple(f"{experts}.{expert}.{each}" for expert in range(shape[0]) for each in _OF_EXPERTS[linear])
        matrix = (shape[2] // len(_OF_EXPERTS[linear]), shape[1])
    if scheme is None:
        return [_floats(_named(modules, "weight"), matrix, recipe, dtype)]
    return list(_codes(modules, matrix, _quantized(name, recipe, scheme, request)))


def _float_dtype(source: Source, request: CheckpointRequest) -> ir.DataType:
    """What a weight has as floats: what is stored; where that is computed, such as dequantised, the checkpoint's."""
    computed = not (isinstance(source.data, StoredWeight) and source.data.formats == ("F32",))
    return (
        ir.DataType.from_numpy(np.dtype(request.dtype))
        if source.dtype == ir.DataType.FLOAT and computed
        else source.dtype
    )


def _fitted(name: str, source: Source, request: CheckpointRequest) -> Recipe:
    """The weight, or what a calibration finds for it where it is a router."""
    if request.calibration and kind_of(name) == "router":
        return request.calibration.add_router(name, source.dims)
    return source


def _floats(names: Sequence[str], shape: tuple[int, ...], recipe: Recipe, dtype: ir.DataType) -> Region:
    return Region(recipe if recipe.dtype == dtype else Cast(recipe, dtype), tuple(names), _DTYPES[dtype], shape)


def _quantized(name: str, recipe: Recipe, scheme: Scheme, request: CheckpointRequest) -> CodedWeight:
    if (rule := request.policy.rule_for(name)) and rule.as_stored:
        return kept_weight(recipe, scheme)
    if request.calibration and request.calibration.takes(name, scheme):
        return GivenWeight(recipe, scheme, request.calibration.add(name, source_of(recipe).dims, scheme))
    return QuantizedWeight(recipe, scheme)


def _codes(modules: Sequence[str], matrix: tuple[int, ...], weight: CodedWeight) -> Iterator[Region]:
    """The tensors of quantised linear layers that have matrices [out, in] of one shape."""
    (rows, columns), scheme = matrix, weight.scheme
    scale = _DTYPES[weight.scales.dtype]
    if scheme.kind == "fp8":
        yield Region(weight.codes, _named(modules, "weight"), "F8_E4M3", matrix)
        yield Region(weight.scales, _named(modules, "weight_scale"), scale, (rows, 1))
        return
    packed = OffsetCodes(weight)
    shape = Constant(ir.Tensor(np.tile(np.array(matrix, np.int64), (len(modules), 1))))
    yield Region(packed.outputs[0], _named(modules, "weight_packed"), "I32", (rows, columns * scheme.bits // 32))
    yield Region(packed.outputs[1], _named(modules, "weight_scale"), scale, (rows, columns // scheme.block_size))
    yield Region(shape, _named(modules, "weight_shape"), "I64", (2,))


def _named(modules: Sequence[str], tensor: str) -> tuple[str, ...]:
    return tuple(f"{module}.{tensor}" for module in modules)
