"""Products with weights as they are stored."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from pass_checks import CLOSE, FLOAT, initializer, node, random

from l4export import passes
from l4export.graph.builder import GraphBuilder
from l4export.weights.recipes import Cast, Recipe, Transpose
from tiny_graphs import decoder_feeds, graph_input, model_of, one_layer, op_types, reference, run, source, typed


def matmul_model(weight: Recipe, readers: int = 1) -> ir.Model:
    """x [B, S, 8] times one weight, `readers` times."""
    b = GraphBuilder()
    x = graph_input("x", FLOAT, 3)
    w = b.initializer(weight, "proj.weight")
    outputs = [typed(b.op("MatMul", x, w, name=f"proj{i}/MatMul"), FLOAT) for i in range(readers)]
    return model_of(b, [x], outputs)


STORED = random(6, 8, seed=1)


def test_a_weight_is_read_as_it_is_stored() -> None:
    model = matmul_model(Transpose(source(STORED), (1, 0)))
    assert passes.KeepWeightsUntransposed()(model).modified
    assert op_types(model) == ["com.microsoft.FusedMatMul"]
    assert node(model, "FusedMatMul").attributes.get_int("transB") == 1
    np.testing.assert_array_equal(initializer(model, "proj.weight"), STORED)


def test_a_cast_of_a_transpose_is_looked_through() -> None:
    model = matmul_model(Cast(Transpose(source(STORED.astype(np.float16)), (1, 0)), FLOAT))
    passes.KeepWeightsUntransposed()(model)
    np.testing.assert_array_equal(initializer(model, "proj.weight"), STORED.astype(np.float16).astype(np.float32))


def test_node_and_output_keep_their_names() -> None:
    model = matmul_model(Transpose(source(STORED), (1, 0)))
    passes.KeepWeightsUntransposed()(model)
    assert (node(model, "FusedMatMul").name, model.graph.outputs[0].name) == ("/proj0/MatMul",) * 2


def test_a_product_with_a_stored_weight_is_the_same() -> None:
    model = matmul_model(Transpose(source(STORED), (1, 0)))
    x = random(2, 3, 8)
    passes.KeepWeightsUntransposed()(model)
    np.testing.assert_allclose(run(model, {"x": x})[0], x @ STORED.T, **CLOSE)


def test_a_weight_with_two_readers_is_left_alone() -> None:
    model = matmul_model(Transpose(source(STORED), (1, 0)), readers=2)
    assert not passes.KeepWeightsUntransposed()(model).modified
    np.testing.assert_array_equal(initializer(model, "proj.weight"), STORED.T)


def test_a_weight_that_is_not_transposed_is_left_alone() -> None:
    model = matmul_model(source(STORED.T.copy()))
    assert not passes.KeepWeightsUntransposed()(model).modified and "com.microsoft" not in model.opset_imports


def transposed_model(perm: list[int], readers: int = 1) -> ir.Model:
    """x [B, S, 8] times a `Transpose` of an [8, 8] initializer."""
    b = GraphBuilder()
    x = graph_input("x", FLOAT, 3)
    embedding = b.initializer(source(random(8, 8, seed=1)), "embedding")
    head = b.op("Transpose", embedding, perm=perm, name="head/Transpose")
    outputs = [typed(b.op("MatMul", x, head, name=f"head{i}/MatMul"), FLOAT) for i in range(readers)]
    return model_of(b, [x], outputs)


def test_a_transposed_initializer_is_read_directly() -> None:
    model = transposed_model([1, 0])
    passes.KeepWeightsUntransposed()(model)
    assert op_types(model) == ["com.microsoft.FusedMatMul"]


def test_a_transpose_with_two_products_goes_when_both_are_rewritten() -> None:
    model = transposed_model([1, 0], readers=2)
    passes.KeepWeightsUntransposed()(model)
    assert op_types(model) == ["com.microsoft.FusedMatMul"] * 2


@pytest.mark.parametrize("perm", [[1, 0], [0, 1]])
def test_the_product_with_a_transpose_stays_the_same(perm: list[int]) -> None:
    model, x = transposed_model(perm), random(2, 3, 8)
    before = run(model, {"x": x})[0]
    passes.KeepWeightsUntransposed()(model)
    np.testing.assert_allclose(run(model, {"x": x})[0], before, **CLOSE)


def test_a_tied_head_keeps_one_copy_of_the_embedding() -> None:
    config = one_layer("mobile")
    model = reference(config)
    feeds = decoder_feeds(config, [20], 20)
    before = run(model, feeds)[0]
    passes.KeepWeightsUntransposed()(model)
    tied = [name for name, v in model.graph.initializers.items() if tuple(v.shape) == (256, 64)]
    assert tied == ["model.embed_tokens.weight"] and "Transpose" not in op_types(model)
    np.testing.assert_allclose(run(model, feeds)[0], before, **CLOSE)
