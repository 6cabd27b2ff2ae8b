from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from l4export import passes
from l4export.checkpoint import open_checkpoint
from l4export.compiler.options import BuildOptions
from l4export.compiler.pipeline import pipeline
from l4export.compiler.plan import plan_build
from l4export.graph.contents import Weights, weights_of
from l4export.model.decoder import build_decoder
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.targets import GraphOptions
from l4export.weights.recipes import Source
from workshop import Workshop, random_ids


def compiled(workshop: Workshop, variant: str, policy: Policy, packed: bool) -> ir.Model:
    """The int4 graph, with the pass or without it."""
    checkpoint = open_checkpoint(workshop.checkpoint(variant))
    model = build_decoder(
        checkpoint.config, lambda name, shape: Source(checkpoint.tensor(name, shape)), ir.DataType.FLOAT
    )
    for step in pipeline("ort-cpu", GraphOptions("concat", 64, policy)):
        if packed or not isinstance(step, passes.PackProjections):
            step(model)
    return model


def logits(model: ir.Model, ids: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    pasts = [value for value in model.graph.inputs if str(value.name).startswith("past")]
    empty = {value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32) for value in pasts}
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), **empty}
    return np.asarray(session.run(["logits"], feeds)[0])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("variant", ["scout", "maverick"])
def test_packed_projections_compute_the_same_bits(workshop: Workshop, variant: str, symmetric: bool) -> None:
    rules = (Rule(("model.layers.*_proj.weight", "*.experts.*"), "int4", symmetric=symmetric),)
    apart, together = (compiled(workshop, variant, Policy(rules), packed) for packed in (False, True))
    ids = random_ids((1, 40))
    np.testing.assert_array_equal(logits(together, ids), logits(apart, ids))


def test_q_k_and_v_become_one_operator(workshop: Workshop) -> None:
    model = plan_build(workshop.checkpoint("scout"), BuildOptions(policy=standard_policy("int4"))).model
    (node,) = (node for node in model.graph if node.name == "/layers.1/attn/q_proj_k_proj_v_proj/MatMul")
    names = "|".join(f"model.layers.1.self_attn.{side}_proj.weight" for side in "qkv")
    assert [value.name for value in node.inputs[1:]] == [f"{names}.codes", f"{names}.scales"]
    held = [weights_of(value) for value in node.inputs[1:]]
    assert held == [Weights(tuple(names.split("|")), part=part) for part in ("codes", "scales")]
    assert node.attributes.get_int("N") == 64 + 32 + 32
    (split,) = (use.node for use in node.outputs[0].uses())
    assert [value.name for value in split.outputs] == [f"/layers.1/attn/{side}_proj/MatMul" for side in "qkv"]


def test_weights_that_are_stored_differently_stay_apart(workshop: Workshop) -> None:
    rules = (Rule(("*.self_attn.q_proj.weight",), "int8"), Rule(("*.self_attn.[kv]_proj.weight",), "int4"))
    model = compiled(workshop, "scout", Policy(rules), packed=True)
    names = [str(node.name) for node in model.graph if node.op_type == "MatMulNBits" and "/layers.0/" in str(node.name)]
    assert names == ["/layers.0/attn/q_proj/MatMul", "/layers.0/attn/k_proj_v_proj/MatMul"]


def test_a_second_run_changes_nothing(workshop: Workshop) -> None:
    model = compiled(workshop, "scout", Policy((Rule(("*_proj.weight",), "int4"),)), packed=True)
    assert not passes.PackProjections()(model).modified
