"""The exact sizes of an engine's data files, from the model's config alone."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from l4export.compiler.pipeline import pipeline, run_passes, vision_pipeline
from l4export.engine.manifest import DECODER, VISION
from l4export.graph.contents import weights_of
from l4export.graph.dtypes import FLOATS
from l4export.graph.matching import nodes_of
from l4export.model.config import ModelConfig
from l4export.model.decoder import build_decoder
from l4export.model.vision_config import VisionConfig
from l4export.model.vision_tower import build_vision_tower
from l4export.model.weight_names import layer_of
from l4export.quantization.policy import Policy
from l4export.sizing.engine_policies import FLOAT_WEIGHTS, PolicyOf
from l4export.targets import TARGETS, GraphOptions
from l4export.weights.placement import INLINE_BYTES, arrange, place_weights
from l4export.weights.recipes import Constant, Recipe, Source

__all__ = ["EngineSize", "EngineSizes", "tower_data"]


@dataclass(frozen=True)
class EngineSize:
    """Sizes of an engine's weights in bytes."""

    data: int
    """The size of all data files: what `build` writes and a runtime keeps in memory."""
    largest: int
    """The size of the largest weight, which is in memory twice while a kernel packs it."""
    dequantized: int
    """The size of the floats that one step makes from weights that its kernels cannot multiply as they are: those of
    the head, and of the layer with the most. 0 unless the weights are fp8."""


class EngineSizes:
    """Sizes of the engines of one model, by the options of `l4export build`.

    They come from the graph plane: the reference graph, with weights that have only shapes, goes through the pipeline
    and the placement. Only a few constants, the rotation tables, depend on the KV cache and the context. They are
    computed in milliseconds on a model with one layer of each kind, and replace those of the whole model. With an
    `image_token` the decoder takes the features of a vision tower, whose own size is that of `tower_data`. `policy_of`
    says what is quantised how.
    """

    def __init__(
        self,
        config: ModelConfig,
        target: str = "ort-cpu",
        image_token: int | None = None,
        policy_of: PolicyOf = FLOAT_WEIGHTS.policy_of,
    ) -> None:
        self.config = config
        self.policy_of = policy_of
        self._made_for = target, image_token
        self._specimen = _one_layer_a_kind(config)
        self._constants = functools.cache(self._find_constants)
        self._whole: dict[tuple[str, str, int], _Layout] = {}

    def size(self, quant: str, dtype: str, kv_layout: str, kv_dtype: str, max_context: int) -> EngineSize:
        """Return the size of the engine that `build` makes with these options.

        Raises:
            InputError: the quantisation does not fit the model's widths, or the target's kernels.
        """
        constants = self.constants(dtype, kv_layout, kv_dtype, max_context)
        key = (quant, dtype, len(constants))
        if key not in self._whole:
            attention = _attention(dtype, kv_dtype)
            self._whole[key] = _Layout.of(
                _compile(
                    self.config, self._made_for, self.policy_of(quant, dtype), dtype, kv_layout, attention, max_context
                )
            )
        return self._whole[key].size(constants)

    def constants(self, dtype: str, kv_layout: str, kv_dtype: str, max_context: int) -> tuple[int, ...]:
        """Return the bytes of each tensor that passes add to the data files, beside the checkpoint's weights."""
        return self._constants(dtype, kv_layout, _attention(dtype, kv_dtype), max_context)

    def _find_constants(self, dtype: str, kv_layout: str, attention: str, max_context: int) -> tuple[int, ...]:
        model = _compile(self._specimen, self._made_for, None, dtype, kv_layout, attention, max_context)
        tensors = [value.const_value for value in model.graph.initializers.values()]
        made = [tensor for tensor in tensors if tensor is not None and not isinstance(tensor, Recipe)]
        return tuple(tensor.nbytes for tensor in made if tensor.nbytes > INLINE_BYTES)


def _compile(
    config: ModelConfig,
    made_for: tuple[str, int | None],
    policy: Policy | None,
    dtype: str,
    kv_layout: str,
    attention: str,
    max_context: int,
) -> ir.Model:
    """Return the graph for a target and an image token, computing in `dtype` with caches of the float `attention`."""
    target, image_token = made_for
    model = build_decoder(config, _shape_alone, FLOATS[dtype], image_token)
    kv_dtype = None if attention == dtype else attention
    run_passes(model, pipeline(target, GraphOptions(kv_layout, max_context, policy, kv_dtype)))
    TARGETS[target].check_graph(model)
    return model


def tower_data(config: VisionConfig, width: int, target: str, dtype: str, decoder_dtype: str) -> int:
    """Return the size in bytes of the data files of a vision tower whose weights have no policy.

    `width` and `decoder_dtype` are those of the decoder that takes its features.
    """
    model = build_vision_tower(config, width, _shape_alone, FLOATS[dtype], FLOATS[decoder_dtype])
    run_passes(model, vision_pipeline(target))
    return sum(file.size for file in place_weights(model, VISION))


def _attention(dtype: str, kv_dtype: str) -> str:
    """Return the float type of the attention operator. Scales of int8 and int4 caches are in no data file."""
    return kv_dtype if kv_dtype in FLOATS else dtype


@dataclass(frozen=True)
class _Shape:
    """A stand-in for a checkpoint's tensor that nobody reads."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] = dataclasses.field(default=np.dtype(ml_dtypes.bfloat16))

    @property
    def place(self) -> None:
        """No file holds it."""

    def read(self, index: object, /) -> np.ndarray:
        """There is nothing to read."""
        raise AssertionError("sizes need no weights")

    def rows(self, index: object, multiple: int = 1, /) -> Iterator[tuple[int, np.ndarray]]:
        """There is nothing to read."""
        raise AssertionError("sizes need no weights")


def _shape_alone(_: str, shape: tuple[int, ...]) -> Source:
    return Source(_Shape(shape))


def _one_layer_a_kind(config: ModelConfig) -> ModelConfig:
    """Return a dense model with one layer of each kind of attention that `config` has."""
    kinds = sorted(set(zip(config.rope_layers, config.chunked_layers, strict=True)))
    rope, chunked = zip(*kinds, strict=True)
    return dataclasses.replace(
        config, num_hidden_layers=len(kinds), moe_layers=(), rope_layers=rope, chunked_layers=chunked
    )


@dataclass(frozen=True)
class _Layout:
    """The bytes of the weights in file order, with None in the place of constants."""

    weights: tuple[int | None, ...]
    dequantized: int

    @staticmethod
    def of(model: ir.Model) -> _Layout:
        recipes = [placed.recipe for file in place_weights(model, DECODER) for placed in file.placements]
        weights = tuple(None if isinstance(recipe, Constant) else recipe.nbytes for recipe in recipes)
        return _Layout(weights, _dequantized(model))

    def size(self, constants: Sequence[int]) -> EngineSize:
        """Return the size with these constants, one for each None in `weights`."""
        made = iter(constants)
        sizes = [next(made) if nbytes is None else nbytes for nbytes in self.weights]
        files = {number: offset + nbytes for (number, offset), nbytes in zip(arrange(sizes), sizes, strict=True)}
        return EngineSize(sum(files.values()), max(sizes, default=0), self.dequantized)


def _dequantized(model: ir.Model) -> int:
    """Return the bytes of dequantised weights: those of the head and of the largest layer, as layers run in turn."""
    floats: Counter[int | None] = Counter()
    for node in nodes_of(model, "DequantizeLinear"):
        (codes, scales), held = node.inputs[:2], weights_of(node.inputs[0])
        assert codes is not None and codes.shape is not None and scales is not None and scales.dtype is not None
        count = int(np.prod(codes.shape.numpy(), dtype=np.int64))
        floats[layer_of(held.names[0]) if held else None] += int(count * scales.dtype.itemsize)
    return floats.pop(None, 0) + max(floats.values(), default=0)
