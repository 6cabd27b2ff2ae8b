"""What nothing reads is dropped, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from pass_checks import CLOSE, FLOAT, random, up_to

from l4export import passes
from l4export.graph.builder import GraphBuilder
from l4export.weights.recipes import Source
from tiny_graphs import UnreadableData, decoder_feeds, graph_input, model_of, one_layer, op_types, reference, run, typed


def cluttered_model() -> ir.Model:
    """exp(x) computed twice, a node and a large weight nobody reads, and an optional input."""
    b = GraphBuilder()
    x = graph_input("x", FLOAT, 2)
    keep = b.initializer(ir.tensor(np.asarray(0, np.int64)), "logits_to_keep")
    b.initializer(Source(UnreadableData((10**6, 10**6), np.float32)), "unread.weight")
    once, twice = b.op("Exp", x), b.op("Exp", x)
    b.op("Sin", x)
    y = typed(b.op("Add", once, twice), FLOAT)
    model = model_of(b, [x, keep], [y])
    model.opset_imports["com.microsoft"] = 1
    return model


def test_equal_subexpressions_are_merged_and_unread_nodes_dropped() -> None:
    model = cluttered_model()
    passes.RemoveUnused()(model)
    assert op_types(model) == ["Exp", "Add"]


def test_unread_weights_are_dropped_unevaluated() -> None:
    model = cluttered_model()
    passes.RemoveUnused()(model)
    assert "unread.weight" not in model.graph.initializers


def test_an_optional_input_is_kept_with_its_default() -> None:
    model = cluttered_model()
    passes.RemoveUnused()(model)
    assert "logits_to_keep" in model.graph.initializers
    assert [value.name for value in model.graph.inputs] == ["x", "logits_to_keep"]


def test_unread_functions_and_opsets_are_dropped() -> None:
    model = cluttered_model()
    passes.RemoveUnused()(model)
    assert not model.functions and set(model.opset_imports) == {""}


def test_a_clean_model_computes_the_same() -> None:
    model = cluttered_model()
    passes.RemoveUnused()(model)
    x = random(2, 3)
    np.testing.assert_allclose(run(model, {"x": x})[0], 2 * np.exp(x), **CLOSE)


def test_logits_to_keep_still_works_after_every_pass() -> None:
    config = one_layer()
    model = reference(config)
    up_to("remove_unused", model)
    feeds = decoder_feeds(config, [16, 9], 16)
    every, last = run(model, feeds)[0], run(model, feeds | {"logits_to_keep": np.asarray(1)})[0]
    np.testing.assert_allclose(last[:, 0], every[[0, 1], [15, 8]], **CLOSE)
