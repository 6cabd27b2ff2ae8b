"""The scales of FP8 activations, measured by running an engine over text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from l4export.calibration.kv_scales import pieces
from l4export.engine.manifest import Manifest
from l4export.errors import InputError
from l4export.graph.builder import GraphBuilder
from l4export.inspection.taps import TappedInference
from l4export.passes.quantize_activations import Product, fp8_products
from l4export.quantization.schemes import FP8_MAX
from l4export.runtimes.cache.host_cache import new_host_cache
from l4export.runtimes.session import Session

__all__ = ["METHOD", "activation_scales"]

METHOD = "largest absolute value of each product's input"

_LEAST = float(np.finfo(np.float16).smallest_normal)
"""Scales are float16 where activations are."""


def activation_scales(engine_path: Path, manifest: Manifest, token_ids: Sequence[int]) -> dict[str, float]:
    """The scale of what each FP8 weight is multiplied by: max |x| / 448 over the tokens, x being rounded nowhere.

    The tokens are cut into sequences of at most the engine's `max_context`. Memory: the engine, with one sequence in
    its cache and the logits of one call.

    Args:
        engine_path: Directory of an engine of standard ONNX; its manifest need not be written yet.
        manifest: Its manifest; its weights are FP8, its activations are not.
        token_ids: What to run.

    Returns:
        By the weight's name. 1 where x was 0 throughout, as of an expert that no token chose; at least 2^-14.

    Raises:
        InputError: an activation that is not finite.
        EnvironmentLacks: onnxruntime is missing.
    """
    model = ir.load(engine_path / manifest.decoder.file)
    products: dict[str, list[Product]] = {}
    for product in fp8_products(model.graph):
        products.setdefault(product.weight, []).append(product)
    names = {weight: _observe(model.graph, alike) for weight, alike in products.items()}
    inference = TappedInference(engine_path, model, list(names.values()))
    capacity = min(manifest.max_context, len(token_ids))
    session = Session(partial(new_host_cache, inference), manifest, 1, capacity)
    for start in range(0, len(token_ids), capacity):
        session.reset()
        sequence = token_ids[start : start + capacity]
        for piece in pieces(len(sequence), manifest):
            session.append(sequence[piece])
    return {weight: _scale(weight, float(np.max(inference.taps[name]))) for weight, name in names.items()}


def _observe(graph: ir.Graph, products: Sequence[Product]) -> str:
    """Adds the largest |x| of products with one weight to the graph's values; its name.

    There is one product in the graph itself, or one in each branch of an `If`.
    """
    found = [_largest(product) for product in products]
    branch = products[0].graph
    if branch is graph:
        return str(found[0].name)
    for product, value in zip(products, found, strict=True):
        product.graph.outputs.append(value)
    node = next(node for node in graph if branch in [attribute.value for attribute in node.attributes.values()])
    node.resize_outputs(len(node.outputs) + 1)
    node.outputs[-1].name = f"{products[0].weight}:largest_input"
    return str(node.outputs[-1].name)


def _largest(product: Product) -> ir.Value:
    """max |x|, float32 [1, 1]."""
    b = GraphBuilder(scope=str(product.node.name))
    x = b.op("Abs", b.op("Cast", product.x, to=int(ir.DataType.FLOAT), name="input_float"), name="input_abs")
    largest = b.op("ReduceMax", b.op("Flatten", x, axis=0, name="input_row"), name="largest_input")
    largest.type, largest.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 1])
    product.graph.insert_before(product.node, b.nodes)
    return largest


def _scale(weight: str, largest: float) -> float:
    if not np.isfinite(largest):
        raise InputError(
            f"{weight}: its input is not finite on the calibration text; the checkpoint or the text is broken"
        )
    return max(largest / FP8_MAX, _LEAST) if largest else 1.0
