"""Caches: where they keep a token, and that the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from pass_checks import CLOSE, CONTEXT, FLOAT, chunked, fuse

from l4export import passes
from l4export.model.config import ModelConfig
from tiny_graphs import decoder_feeds, loaded, one_layer, op_types, reference, run, tiny_config


def slots(model: ir.Model) -> set[str]:
    caches = [
        v for v in (*model.graph.inputs, *model.graph.outputs) if ".key" in str(v.name) or ".value" in str(v.name)
    ]
    return {str(value.shape[2]) for value in caches if value.shape is not None}


def test_static_caches_are_declared_with_one_capacity() -> None:
    model = reference(one_layer())
    passes.LayOutKVCache("static")(model)
    assert slots(model) == {"capacity"}


def test_concat_is_the_layout_of_the_reference() -> None:
    model = reference(one_layer())
    assert not passes.LayOutKVCache("concat")(model).modified
    assert slots(model) == {"past", "present"}


def test_concat_undoes_static() -> None:
    model = reference(one_layer())
    passes.LayOutKVCache("static")(model)
    assert passes.LayOutKVCache("concat")(model).modified and slots(model) == {"past", "present"}


def test_only_the_slots_of_caches_are_renamed() -> None:
    model, untouched = reference(one_layer()), reference(one_layer())
    passes.LayOutKVCache("static")(model)
    for ours, theirs in zip(model.graph.inputs, untouched.graph.inputs, strict=True):
        assert ours.shape is not None and theirs.shape is not None
        assert [dim for i, dim in enumerate(ours.shape) if "past" not in str(ours.name) or i != 2] == [
            dim for i, dim in enumerate(theirs.shape) if "past" not in str(theirs.name) or i != 2
        ]


def test_a_cache_in_place_gives_the_logits_of_one_that_grows() -> None:
    config = one_layer()
    model = reference(config)
    grown = run(model, decoder_feeds(config, [20, 13], 20))
    passes.LayOutKVCache("static")(model)
    still = run(model, decoder_feeds(config, [20, 13], 20, past=CONTEXT))
    assert still[1].shape[2] == CONTEXT and grown[1].shape[2] == 20
    np.testing.assert_allclose(still[0], grown[0], **CLOSE)
    np.testing.assert_array_equal(still[1][:, :, :20], grown[1])


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="'paged' is not one of concat, static, chunked"):
        passes.LayOutKVCache("paged")


def test_chunked_layers_get_caches_of_one_chunk() -> None:
    model = chunked(reference(tiny_config()))  # three chunked layers and a full one
    caches = {
        str(v.name): str(v.shape[2]) for v in (*model.graph.inputs, *model.graph.outputs) if str(v.name).endswith("key")
    }
    assert caches == {
        f"{kind}.{layer}.key": "capacity" if layer == 3 else "chunk_capacity"
        for kind in ("past_key_values", "present")
        for layer in range(4)
    }


def test_a_layout_in_chunks_runs_twice_and_is_not_undone() -> None:
    model = chunked(reference(tiny_config()))
    assert not passes.LayOutKVCache("chunked")(model).modified
    with pytest.raises(ir.passes.PreconditionError, match="lay them out once"):
        passes.LayOutKVCache("static")(model)


def test_without_chunked_layers_the_layout_in_chunks_is_static() -> None:
    config = tiny_config("guard")
    model, static = chunked(reference(config)), reference(config)
    passes.LayOutKVCache("static")(static)
    assert op_types(model) == op_types(static) and slots(model) == {"capacity"}


DENSE = tiny_config("mobile", rope_layers=(True, True, False, False), chunked_layers=(True, False, True, False))


@pytest.mark.parametrize("fused", [False, True], ids=["dialect", "fused"])
@pytest.mark.parametrize(
    ("config", "dtype", "start"),
    [
        pytest.param(tiny_config(), FLOAT, [0], id="from 0"),
        pytest.param(tiny_config(), FLOAT, [9_999_900], id="from afar"),
        pytest.param(tiny_config(), FLOAT, [9_999_900, 7], id="from two positions"),
        pytest.param(DENSE, FLOAT, [9_999_900, 7], id="rotated and chunked are different layers"),
        pytest.param(DENSE, ir.DataType.FLOAT16, [9_999_900, 7], id="float16"),
    ],
)
def test_caches_of_one_chunk_compute_the_same(
    config: ModelConfig, dtype: ir.DataType, start: list[int], fused: bool
) -> None:
    """One token a call through two boundaries, beside the reference graph with caches of the whole sequence."""
    model = chunked(reference(config, dtype))
    if fused:
        fuse(model, 10_485_760)
        passes.InlineDialect()(model)
    ours, whole = loaded(model), loaded(reference(config, dtype))
    caches, whole_caches = ([np.zeros((2, 2, 40, 16), dtype.numpy())] * 8 for _ in range(2))
    for length in range(1, 38):
        feeds, whole_feeds = (
            decoder_feeds(config, [length] * 2, 1, past=past, seed=length) | {"cache_start": np.asarray(start)}
            for past in (caches, whole_caches)
        )
        logits, *caches = ours.run(None, feeds)
        expected, *whole_caches = whole.run(None, whole_feeds)
        # float16: eleven bits, through four layers, on logits of order one
        np.testing.assert_allclose(logits, expected, **(CLOSE if dtype == FLOAT else {"rtol": 0.05, "atol": 0.05}))


@pytest.mark.parametrize("fused", [False, True], ids=["dialect", "fused"])
def test_a_call_over_the_end_of_a_chunk_is_refused(fused: bool) -> None:
    config = one_layer()
    model = chunked(reference(config))
    if fused:
        fuse(model)
    run(model, decoder_feeds(config, [16], 16))
    for rows, tokens in (([17], 17), ([18], 4), ([18, 18], 4)):
        with pytest.raises(Exception, match="new_tokens_must_stay_in_one_chunk"):
            run(model, decoder_feeds(config, rows, tokens, past=16))


def test_a_graph_in_chunks_has_no_mask_and_tables_of_one_chunk() -> None:
    model = chunked(reference(tiny_config()))
    fuse(model, 1_000_000)
    passes.InlineDialect()(model)
    passes.RemoveUnused()(model)
    for layer, fused in enumerate(node for node in model.graph if node.op_type == "GroupQueryAttention"):
        assert len(fused.inputs) <= 10 or fused.inputs[10] is None
        if layer < 3:
            assert fused.inputs[7].shape == (16, 8)
    assert "RotaryEmbedding" not in op_types(model)


def test_rotated_layers_that_see_everything_keep_their_own_angles() -> None:
    model = chunked(reference(tiny_config(chunked_layers=(True, False, True, False))))
    fuse(model)
    rows = [n.inputs[7].shape[0] for n in model.graph if n.op_type == "GroupQueryAttention" and n.inputs[7] is not None]
    assert rows == [16, CONTEXT, 16]
