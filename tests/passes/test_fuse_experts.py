"""One fused operator for a mixture of experts, which computes the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from pass_checks import FLOAT, initializer, node, random

from l4export import passes
from l4export.graph.builder import GraphBuilder
from l4export.graph.dialect import DOMAIN, is_dialect
from tiny_graphs import graph_input, model_of, one_layer, op_types, reference, run, source, typed


def moe_model(k: int, constant_weights: bool = True) -> ir.Model:
    """x [B, S, 8] and router logits [B, S, 4] into 4 experts of width 6."""
    b = GraphBuilder()
    x, logits = graph_input("x", FLOAT, 3), graph_input("router_logits", FLOAT, 3)
    inputs = [x, logits]
    if constant_weights:
        gate_up = b.initializer(source(random(4, 8, 12, seed=2)), "gate_up")
        down = b.initializer(source(random(4, 6, 8, seed=3)), "down")
    else:
        gate_up, down = graph_input("gate_up", FLOAT, 3), graph_input("down", FLOAT, 3)
        inputs += [gate_up, down]
    y = b.op("MoE", x, logits, gate_up, down, domain=DOMAIN, name="experts", k=k)
    return model_of(b, inputs, [typed(y, FLOAT)])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_fused_experts_compute_the_same(k: int) -> None:
    model = moe_model(k)
    feeds = {"x": random(2, 5, 8), "router_logits": 3 * random(2, 5, 4, seed=1)}
    (before,) = run(model, feeds)
    passes.FuseExperts()(model)
    (after,) = run(model, feeds)
    assert np.abs(before).max() > 1
    # values of order 50 from sums that are taken in another order
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("k", [1, 2])
def test_one_fused_operator_takes_the_place_of_the_experts(k: int) -> None:
    model = moe_model(k)
    passes.FuseExperts()(model)
    assert op_types(model).count("com.microsoft.MoE") == 1
    assert not any(is_dialect(node, "MoE") for node in model.graph)
    assert model.graph.outputs[0].name == "/experts"


def test_fused_experts_each_see_one_row() -> None:
    model = moe_model(2)
    passes.FuseExperts()(model)
    assert node(model, "MoE").attributes.get_int("k") == 1
    assert node(model, "MoE").attributes.get_int("normalize_routing_weights") == 1


def test_gate_and_up_rows_take_turns() -> None:
    model = moe_model(1)
    passes.FuseExperts()(model)
    gate_up, fc1 = random(4, 8, 12, seed=2), initializer(model, "gate_up.fc1")
    assert fc1.shape == (4, 12, 8)
    np.testing.assert_array_equal(fc1[:, 0::2], gate_up[:, :, :6].transpose(0, 2, 1))
    np.testing.assert_array_equal(fc1[:, 1::2], gate_up[:, :, 6:].transpose(0, 2, 1))


def test_down_is_transposed() -> None:
    model = moe_model(1)
    passes.FuseExperts()(model)
    np.testing.assert_array_equal(initializer(model, "down.fc2"), random(4, 6, 8, seed=3).transpose(0, 2, 1))


def test_the_weights_that_were_replaced_are_gone() -> None:
    model = moe_model(1)
    passes.FuseExperts()(model)
    assert not {"gate_up", "down"} & set(model.graph.initializers)


def test_expert_weights_must_be_initializers() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="expert weights must be initializers"):
        passes.FuseExperts()(moe_model(1, constant_weights=False))


def test_a_model_without_experts_is_left_alone() -> None:
    model = reference(one_layer("guard"))
    assert not passes.FuseExperts()(model).modified and "com.microsoft" not in model.opset_imports
