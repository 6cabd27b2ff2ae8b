"""The dialect's bodies in the place of its calls."""

from __future__ import annotations

import numpy as np
import pytest
from pass_checks import CLOSE

from l4export import passes
from l4export.graph.contents import layer_values
from l4export.graph.dialect import DOMAIN, is_dialect
from tiny_graphs import decoder_feeds, one_layer, reference, run, tiny_config


@pytest.mark.parametrize("variant", ["scout", "maverick", "guard", "mobile"])
def test_an_inlined_model_computes_the_same(variant: str) -> None:
    config = one_layer(variant)
    model = reference(config)
    feeds = decoder_feeds(config, [20, 9], 20)
    before = run(model, feeds)
    passes.InlineDialect()(model)
    for ours, theirs in zip(run(model, feeds), before, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_no_trace_of_the_dialect_is_left() -> None:
    model = reference(tiny_config())
    passes.InlineDialect()(model)
    assert not any(is_dialect(node) for node in model.graph)
    assert DOMAIN not in model.opset_imports and not model.functions


def test_bodies_are_named_below_their_call() -> None:
    model = reference(one_layer())
    passes.InlineDialect()(model)
    names = {node.name for node in model.graph}
    assert "/layers.0/attn/q_norm/RMSNormalization" in names
    assert any(name.startswith("/layers.0/attn/Attention/") for name in names if name)
    assert not any(name.startswith("node") or not name for name in names)


def test_value_names_stay_unique() -> None:
    model = reference(tiny_config())
    passes.InlineDialect()(model)
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(names) == len(set(names))


def test_the_refusal_of_a_mask_keeps_its_name() -> None:
    config = one_layer()
    model = reference(config)
    passes.InlineDialect()(model)
    feeds = decoder_feeds(config, [4], 4) | {"attention_mask": np.asarray([[0, 1, 1, 1]])}
    with pytest.raises(Exception, match="rows_must_be_padded_on_the_right"):
        run(model, feeds)


def test_results_of_calls_keep_their_names() -> None:
    model = reference(one_layer())
    calls = {v.name for node in model.graph if is_dialect(node) for v in node.outputs}
    passes.InlineDialect()(model)
    assert calls <= {value.name for node in model.graph for value in node.outputs}


def test_results_of_calls_are_still_known_for_what_they_are() -> None:
    """The library's inliner forgets the notes of a call's outputs; caches are outputs of `l4.Attention` here."""
    model = reference(tiny_config())
    before = {held: value.name for held, value in layer_values(model.graph).items()}
    passes.InlineDialect()(model)
    assert {held: value.name for held, value in layer_values(model.graph).items()} == before
