"""The tensors of sample checkpoints in each format: weights as floats, or some of them quantised as in a release.

A quantised sample is what the format's definition makes of the float sample's weights, rounded to bfloat16 as those of
released checkpoints are: a scale is max |w| / 448 in FP8 and max |w| / 7.5 in int4, over the weights that share it,
rounded to bfloat16; a code is w / scale, rounded to the nearest that there is. That is the rounding of
compressed-tensors (`quantization/utils/helpers.py`, calculate_qparams), whose layout this is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from l4export.checkpoint.experts import EXPERT_LINEARS
from l4export.checkpoint.packed_ints import pack
from l4export.checkpoint.quantization_scheme import Expected, Scheme
from l4export.checkpoint.sample_weights import SampleWeight, blocks, drawn, generator_of
from l4export.model.weight_names import KINDS
from l4export.storage.safetensors_writer import Entry

__all__ = ["FORMATS", "SampleFormat", "sample_format"]

FORMATS = ("float", "fp8", "w4a16")

_EXPERTS = ("experts gate_up", "experts down")
_IN_BOTH = ("re:.*lm_head", "re:.*self_attn", "re:.*router", "re:.*vision_model", "re:.*multi_modal_projector")
_DENSE = tuple(f"re:.*feed_forward.{name}_proj" for name in ("gate", "up", "down"))
_SMALL_GROUP = 32
"""Columns of a group at size `tiny`: its widths are no multiples of 128."""
_REACH = 4.0
"""The largest of a channel's or a group's weights, roughly, in standard deviations."""

Tensors = dict[str, np.ndarray]
"""Some of a linear layer's tensors, by their names in it."""


@dataclass(frozen=True)
class SampleFormat:
    """How a sample's weights are stored.

    Attributes:
        dtype: Of floats, as safetensors spells it.
        kinds: The kinds of weights that are quantised (`l4export.model.weight_names.KINDS`).
        scheme: How they are; None: nothing is quantised.
        config: What config.json says of that; None: nothing.
    """

    dtype: str
    kinds: tuple[str, ...] = ()
    scheme: Scheme | None = None
    config: Mapping[str, Any] | None = None

    def quantises(self, weight: SampleWeight) -> Scheme | None:
        """How a weight is quantised; None: it is not."""
        return self.scheme if any(re.fullmatch(KINDS[kind], weight.name) for kind in self.kinds) else None

    def entries(self, weights: Iterable[SampleWeight]) -> list[Entry]:
        """The tensors of the checkpoint, in order."""
        found: list[Entry] = []
        for weight in weights:
            if scheme := self.quantises(weight):
                for module, shape in _linears(weight):
                    for name, expected in _expected(scheme, shape).items():
                        dtype = "BF16" if name == "weight_scale" else expected.dtypes[0]
                        found.append((f"{weight.prefix}{module}.{name}", dtype, expected.shapes[0]))
            else:
                found.append((weight.prefix + weight.name, self.dtype, weight.shape))
        return found

    def contents(self, weights: Iterable[SampleWeight], seed: int) -> Iterator[Iterable[np.ndarray]]:
        """The bytes of these tensors, of each in pieces. At most the matrix of one expert is held at a time."""
        for weight in weights:
            if scheme := self.quantises(weight):
                for matrix in _matrices(weight, seed):
                    made = _quantised(matrix, scheme)
                    yield from ([made[name]] for name in _expected(scheme, matrix.shape))
            else:
                yield blocks(weight, seed, self.dtype)

    def contents_without_weights(
        self, weights: Iterable[SampleWeight], seed: int
    ) -> Iterator[Iterable[np.ndarray] | None]:
        """The same with None for floats and codes. Scales are drawn, of a size that the weights' would have."""
        for weight in weights:
            if scheme := self.quantises(weight):
                for module, shape in _linears(weight):
                    made = _without_codes(weight, module, shape, scheme, seed)
                    yield from ([made[name]] if name in made else None for name in _expected(scheme, shape))
            else:
                yield None


def sample_format(name: str, size: str) -> SampleFormat:
    """One of `FORMATS` at one of the sizes, with the fields of config.json that a released checkpoint of it has."""
    if name == "fp8":
        activations = _arguments(num_bits=8, type="float", strategy="token", dynamic=True, observer=None)
        config = _config("float-quantized", (*_IN_BOTH, "re:.*shared_expert", *_DENSE), activations)
        return _quantising(_EXPERTS, Scheme(bits=8, is_float=True), config)
    if name == "w4a16":
        scheme = Scheme(bits=4, is_float=False, strategy="group", group=_SMALL_GROUP if size == "tiny" else 128)
        return _quantising((*_EXPERTS, "shared expert", "dense MLP"), scheme, _config("pack-quantized", _IN_BOTH, None))
    return SampleFormat("F32" if size == "tiny" else "BF16")


def _quantising(kinds: tuple[str, ...], scheme: Scheme, config: dict[str, Any]) -> SampleFormat:
    """The format with a config that says what the scheme is."""
    config["config_groups"]["group_0"]["weights"] = _arguments(
        num_bits=scheme.bits,
        type="float" if scheme.is_float else "int",
        strategy=scheme.strategy,
        dynamic=False,
        observer="minmax",
        group_size=scheme.group or None,
        actorder="weight" if scheme.group else None,
    )
    return SampleFormat("BF16", kinds, scheme, config)


def _config(layout: str, ignored: Iterable[str], activations: dict[str, Any] | None) -> dict[str, Any]:
    """`quantization_config`, as llm-compressor writes it."""
    group = {"input_activations": activations, "output_activations": None, "targets": ["Linear"]}
    return {
        "config_groups": {"group_0": group},
        "format": layout,
        "global_compression_ratio": None,
        "ignore": list(ignored),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _arguments(**given: Any) -> dict[str, Any]:
    """How weights or activations are quantised, in the words of compressed-tensors."""
    others: dict[str, Any] = {
        "actorder": None,
        "block_structure": None,
        "group_size": None,
        "observer_kwargs": {},
        "symmetric": True,
    }
    return others | given


def _expected(scheme: Scheme, shape: tuple[int, ...]) -> dict[str, Expected]:
    """The tensors of a linear layer, in order."""
    return scheme.tensors(shape, packed=not scheme.is_float)


def _linears(weight: SampleWeight) -> Iterator[tuple[str, tuple[int, int]]]:
    """The linear layers that a weight is stored as, [out, in], by their names."""
    if len(weight.shape) == 2:
        yield weight.name.removesuffix(".weight"), (weight.shape[0], weight.shape[1])
        return
    experts, inner, out = weight.shape
    module, _, tensor = weight.name.rpartition(".")
    linears = EXPERT_LINEARS[tensor]
    for expert in range(experts):
        for linear in linears:
            yield f"{module}.{expert}.{linear}", (out // len(linears), inner)


def _matrices(weight: SampleWeight, seed: int) -> Iterator[NDArray[np.float32]]:
    """Their matrices, in the same order, rounded to bfloat16."""
    *outer, rows, columns = weight.shape
    halves = len(EXPERT_LINEARS[weight.name.rpartition(".")[2]]) if outer else 1
    for values in drawn(weight, seed, [rows * columns] * math.prod(outer)):
        matrix = values.astype(ml_dtypes.bfloat16).astype(np.float32).reshape(rows, columns)
        yield from (half.T for half in np.split(matrix, halves, axis=1)) if outer else [matrix]


def _quantised(matrix: NDArray[np.float32], scheme: Scheme) -> Tensors:
    """The tensors of a linear layer [out, in] whose groups of columns, or rows, share a scale."""
    down, across = scheme.blocks(matrix.shape)
    groups = np.ascontiguousarray(matrix).reshape(down, across, -1)
    scales = (np.abs(groups).max(axis=2) / np.float32(_top(scheme))).astype(ml_dtypes.bfloat16)
    exact = groups / scales.astype(np.float32)[:, :, None]
    if scheme.is_float:
        codes = np.clip(exact, -448, 448).astype(ml_dtypes.float8_e4m3fn).reshape(matrix.shape)
        return {"weight": codes, "weight_scale": scales}
    ints = np.clip(np.rint(exact), -8, 7).astype(np.int8).reshape(matrix.shape)
    return {"weight_packed": pack(ints, scheme.bits), "weight_scale": scales, "weight_shape": np.array(matrix.shape)}


def _top(scheme: Scheme) -> float:
    """What the largest weight of a group is divided by: half of the codes' range."""
    return 448.0 if scheme.is_float else (2**scheme.bits - 1) / 2


def _without_codes(weight: SampleWeight, module: str, shape: tuple[int, int], scheme: Scheme, seed: int) -> Tensors:
    """What there is of a linear layer whose codes are holes."""
    assert weight.std is not None
    values = generator_of(f"{module}.weight_scale", seed).random(scheme.blocks(shape), np.float32)
    scales = (values + np.float32(0.5)) * np.float32(weight.std * _REACH / _top(scheme))
    return {"weight_scale": scales.astype(ml_dtypes.bfloat16), "weight_shape": np.array(shape)}
