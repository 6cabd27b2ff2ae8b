"""Norm and rotation in the other order."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from pass_checks import CLOSE, FLOAT, random

from l4export import passes
from l4export.graph.builder import GraphBuilder
from l4export.graph.dialect import DOMAIN
from tiny_graphs import graph_input, model_of, op_types, run, typed


def norm_model(*, rotate: bool = True, second_reader: bool = False) -> ir.Model:
    """x [B, S, 2*8] -> rotation -> norm."""
    b = GraphBuilder()
    x, cos, sin = (graph_input(name, FLOAT, 3) for name in ("x", "cos", "sin"))
    rotated = b.op("RotaryEmbedding", x, cos, sin, name="q_rotary", interleaved=1, num_heads=2) if rotate else x
    normed = b.op("QKNorm", rotated, domain=DOMAIN, name="q_norm", num_heads=2, head_dim=8, epsilon=1e-5)
    outputs = [typed(b.op("Identity", normed, name="y"), FLOAT)]
    if second_reader:
        outputs.append(typed(b.op("Identity", rotated, name="z"), FLOAT))
    return model_of(b, [x, cos, sin], outputs)


def test_the_norm_moves_before_the_rotation() -> None:
    model = norm_model()
    assert passes.MoveQKNormBeforeRotary()(model).modified
    assert op_types(model) == ["l4.QKNorm", "RotaryEmbedding", "Identity"]
    assert [node.name for node in model.graph] == ["/q_norm", "/q_rotary", "/y"]


def test_norm_and_rotation_commute() -> None:
    model = norm_model()
    angles = 10 * random(2, 5, 4, seed=1)
    feeds = {"x": 3 * random(2, 5, 16), "cos": np.cos(angles), "sin": np.sin(angles)}
    before = run(model, feeds)[0]
    passes.MoveQKNormBeforeRotary()(model)
    np.testing.assert_allclose(run(model, feeds)[0], before, **CLOSE)


def test_a_rotation_that_something_else_reads_stays() -> None:
    model = norm_model(second_reader=True)
    assert not passes.MoveQKNormBeforeRotary()(model).modified
    assert op_types(model)[:2] == ["RotaryEmbedding", "l4.QKNorm"]


def test_a_norm_without_a_rotation_stays() -> None:
    assert not passes.MoveQKNormBeforeRotary()(norm_model(rotate=False)).modified
