"""Small graphs and stored tensors for the tests of the dialect, the passes and emission."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from l4export.checkpoint.hf_config import config_from_hf
from l4export.checkpoint.sample import hf_config
from l4export.graph.builder import GraphBuilder
from l4export.graph.dialect import DOMAIN, OPSET_VERSION, dialect_functions
from l4export.model.config import ModelConfig
from l4export.model.decoder import IR_VERSION, build_decoder
from l4export.weights.recipes import Recipe, Source


class ArrayData:
    """A stored tensor that lies in memory and remembers the regions it was asked for."""

    place = None

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.regions: list[tuple[slice, ...]] = []

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        self.regions.append(index)
        return np.array(self.array[index], order="C")

    def rows(self, index: tuple[int | slice, ...], multiple: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """As small as can be."""
        matrix = self.array[index]
        for first in range(0, len(matrix), multiple):
            yield first, matrix[first : first + multiple]


class UnreadableData:
    """A stored tensor of any size whose values must not be asked for."""

    place = None

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        raise AssertionError(f"read {index}")

    def rows(self, index: tuple[int | slice, ...], multiple: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        raise AssertionError(f"read {index}")


def source(array: np.ndarray) -> Source:
    return Source(ArrayData(array))


def graph_input(name: str, dtype: ir.DataType, rank: int) -> ir.Value:
    shape = ir.Shape([f"{name}_{axis}" for axis in range(rank)])
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)


def typed(value: ir.Value, dtype: ir.DataType) -> ir.Value:
    value.type = ir.TensorType(dtype)
    return value


def model_of(builder: GraphBuilder, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=builder.nodes,
        initializers=builder.initializers,
        opset_imports={"": OPSET_VERSION, DOMAIN: 1},
        name="test",
    )
    return ir.Model(graph, ir_version=IR_VERSION, functions=dialect_functions())


def loaded(model: ir.Model) -> ort.InferenceSession:
    """The model in ONNX Runtime's CPU provider."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    proto = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of one call in ONNX Runtime's CPU provider."""
    return loaded(model).run(None, dict(feeds))


def call(
    op_type: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[ir.DataType], **attributes: Any
) -> list[np.ndarray]:
    """One dialect function, run alone."""
    b = GraphBuilder()
    values = [graph_input(name, ir.DataType.from_numpy(a.dtype), a.ndim) for name, a in inputs.items()]
    results = b.ops(op_type, *values, outputs=len(outputs), domain=DOMAIN, **attributes)
    for value, dtype in zip(results, outputs, strict=True):
        typed(value, dtype)
    return run(model_of(b, values, list(results)), inputs)


def op_types(model: ir.Model) -> list[str]:
    """Every node of the graph in order, as `domain.Type` or `Type`."""
    return [f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph]


def tiny_config(variant: str = "scout", **changes: Any) -> ModelConfig:
    """A tiny sample's configuration, with fields of `ModelConfig` changed."""
    return dataclasses.replace(config_from_hf(hf_config(variant, "tiny"), variant), **changes)


def one_layer(variant: str = "scout", *, rope: bool = True, chunked: bool = True, **changes: Any) -> ModelConfig:
    """A configuration of a single layer."""
    layers = {"num_hidden_layers": 1, "rope_layers": (rope,), "chunked_layers": (chunked,)}
    moe = (0,) if variant in ("scout", "maverick") else ()
    return tiny_config(variant, **layers, moe_layers=moe, **changes)


def reference(config: ModelConfig, dtype: ir.DataType = ir.DataType.FLOAT, seed: int = 0) -> ir.Model:
    """The reference graph with random weights of order one over the square root of their width."""
    rng = np.random.default_rng(seed)

    def weights(name: str, shape: tuple[int, ...]) -> Recipe:
        if len(shape) == 1:
            return source(rng.uniform(0.5, 1.5, shape).astype(np.float32))
        width = shape[1] if len(shape) == 3 else shape[-1]
        return source((rng.standard_normal(shape) / np.sqrt(width)).astype(np.float32))

    return build_decoder(config, weights, dtype)


def decoder_feeds(
    config: ModelConfig, rows: Sequence[int], new_tokens: int, past: Sequence[np.ndarray] | int = 0, seed: int = 1
) -> dict[str, np.ndarray]:
    """Inputs of a decoder call; `rows` are total lengths, `past` the caches, or the slots of empty ones."""
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (len(rows), new_tokens))
    mask = (np.arange(max(rows)) < np.asarray(rows)[:, None]).astype(np.int64)
    if isinstance(past, int):
        shape = (len(rows), config.num_key_value_heads, past, config.head_dim)
        past = [np.zeros(shape, np.float32)] * (2 * config.num_hidden_layers)
    names = [f"past_key_values.{i}.{kind}" for i in range(config.num_hidden_layers) for kind in ("key", "value")]
    return {"input_ids": ids, "attention_mask": mask, **dict(zip(names, past, strict=True))}
