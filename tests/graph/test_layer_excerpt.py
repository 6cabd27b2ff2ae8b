"""Some layers of a decoder in a chain: numbers, names and what is left of the whole, whatever its sums look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.graph.contents import LayerValue, layer_values, note
from l4export.graph.layer_excerpt import excerpt_layers
from workshop import Workshop, assert_close, random_ids

CONTEXT, TOKENS = 64, 40
CHAINS = [(0, 3), (0, 1, 3), (0, 2), (0,), (0, 1, 2, 3)]


def lowered(workshop: Workshop, variant: str = "maverick") -> ir.Model:
    """In the static layout, where a prompt may cross a chunk within one call."""
    return plan_build(workshop.checkpoint(variant), BuildOptions(max_context=CONTEXT)).model


def with_sums_in_norms(model: ir.Model) -> ir.Model:
    """Every Add of a residual stream and the norm behind it in one node, as GPUs like it."""
    graph = model.graph
    for norm in [node for node in graph if node.op_type == "RMSNormalization"]:
        add = norm.inputs[0].producer() if norm.inputs[0] else None
        if add is None or add.op_type != "Add":
            continue
        outputs = [ir.Value(name=f"{norm.name}:{index}") for index in range(4)]
        epsilon = norm.attributes["epsilon"]
        fused = ir.Node(
            *("com.microsoft", "SkipSimplifiedLayerNormalization", [*add.inputs, norm.inputs[1]]),
            attributes={"epsilon": epsilon},
            outputs=outputs,
            name=f"{norm.name}/fused",
        )
        held = layer_values(graph)
        for old, new in ((norm.outputs[0], outputs[0]), (add.outputs[0], outputs[3])):
            for key, value in held.items():
                if value is old:
                    note(new, key)
        graph.insert_before(norm, fused)
        norm.outputs[0].replace_all_uses_with(outputs[0])
        add.outputs[0].replace_all_uses_with(outputs[3])
        graph.remove([norm, add], safe=True)
    return model


def logits(model: ir.Model, layers: int) -> np.ndarray:
    """Of one prompt that crosses two chunks, and the caches that it leaves."""
    options: Any = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    ids = random_ids((1, TOKENS))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    cache = np.zeros((1, 2, CONTEXT, 16), np.float32)
    feeds |= {f"past_key_values.{n}.{kind}": cache for n in range(layers) for kind in ("key", "value")}
    return np.asarray(session.run(["logits"], feeds)[0])[0]


@pytest.mark.parametrize("layers", CHAINS, ids=str)
def test_a_chain_computes_what_pytorch_computes_without_the_other_layers(
    workshop: Workshop, layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = workshop.reference("maverick")
    for number, layer in enumerate(reference.model.model.layers):
        if number not in layers:
            monkeypatch.setattr(layer, "forward", lambda hidden, *_, **__: hidden)
    expected = reference.logits(random_ids((1, TOKENS)))[0]
    assert_close(logits(excerpt_layers(lowered(workshop), layers), len(layers)), expected)


@pytest.mark.parametrize("layers", CHAINS, ids=str)
def test_sums_that_are_in_the_norms_behind_them(workshop: Workshop, layers: tuple[int, ...]) -> None:
    fused = with_sums_in_norms(lowered(workshop))
    assert sum(node.op_type == "SkipSimplifiedLayerNormalization" for node in fused.graph) == 8
    expected = logits(excerpt_layers(lowered(workshop), layers), len(layers))
    excerpt = excerpt_layers(fused, layers)
    assert_close(logits(excerpt, len(layers)), expected, 1e-5)  # the same sums in another kernel
    assert set(layer_values(excerpt.graph)) >= {LayerValue("residual", n) for n in range(len(layers))}


def test_names_notes_and_constants(workshop: Workshop) -> None:
    model = lowered(workshop)
    before = [str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)], set(layer_values(model.graph))
    excerpt = excerpt_layers(model, (0, 3)).graph
    caches = [f"{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")]
    call = {"input_ids", "attention_mask", "logits_to_keep", "mask_start", "cache_start"}
    assert {value.name for value in excerpt.inputs} == call | {f"past_key_values.{name}" for name in caches}
    assert [value.name for value in excerpt.outputs] == ["logits", *(f"present.{name}" for name in caches)]
    assert {held.layer for held in layer_values(excerpt)} == {0, 1}
    assert LayerValue("router_logits", 1) in layer_values(excerpt)  # maverick: layers 1 and 3 have experts
    weights = set(excerpt.initializers)
    assert "model.layers.3.self_attn.q_proj.weight" in weights
    assert not [name for name in weights if name.startswith(("model.layers.1.", "model.layers.2."))]
    for name in weights - {"logits_to_keep"}:
        assert excerpt.initializers[name].const_value is model.graph.initializers[name].const_value
    after = [str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)], set(layer_values(model.graph))
    assert after == before
