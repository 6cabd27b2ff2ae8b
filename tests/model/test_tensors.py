"""The inventory of tensors against transformers' own model, against the decoder graph, and counted by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4export.checkpoint.hf_config import config_from_hf
from l4export.checkpoint.sample import FULL_VARIANTS, SIZES, VARIANTS, hf_config
from l4export.model.config import ModelConfig
from l4export.model.decoder import build_decoder
from l4export.model.tensors import parameter_count, tensors
from l4export.model.weight_names import KINDS, kind_of, layer_of
from l4export.weights.recipes import Recipe, Source
from tiny_graphs import UnreadableData, tiny_config

SAMPLES = [(variant, size) for size in SIZES for variant in (FULL_VARIANTS if size == "full" else VARIANTS)]

Shapes = dict[str, tuple[int, ...]]


def transformers_shapes(raw: dict[str, Any]) -> Shapes:
    """Names and shapes that transformers' model of this config saves, without ever having a weight."""
    import torch
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    runnable = {**raw, "attention_chunk_size": raw["attention_chunk_size"] or 4096}  # it cannot have null
    with torch.device("meta"):
        model = Llama4ForCausalLM(Llama4TextConfig.from_dict(runnable))
    left_out = set(model.all_tied_weights_keys)  # a tied head is not saved
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in left_out}


@pytest.mark.parametrize(
    ("variant", "size"),
    [*((v, "tiny") for v in VARIANTS), ("mobile", "bench"), ("scout", "full"), ("maverick", "full")],
)
def test_it_is_what_transformers_saves(variant: str, size: str) -> None:
    raw = hf_config(variant, size)
    assert tensors(config_from_hf(raw, variant)) == transformers_shapes(raw)


@st.composite
def architectures(draw: st.DrawFn) -> dict[str, Any]:
    """A config.json of small random widths and counts, layers of both kinds anywhere."""
    number = st.integers(1, 6)
    layers, kv_heads = draw(number), draw(st.integers(1, 3))
    return {
        **hf_config("scout", "tiny"),
        "vocab_size": draw(st.integers(251, 300)),
        "hidden_size": 2 * draw(number),
        "intermediate_size": draw(number),
        "intermediate_size_mlp": draw(number),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * draw(number),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw(number),
        "num_local_experts": draw(number),
        "moe_layers": sorted(draw(st.sets(st.integers(0, layers - 1)))),
        "no_rope_layers": [1] * layers,
        "tie_word_embeddings": draw(st.booleans()),
    }


@settings(max_examples=30, deadline=None)
@given(architectures())
def test_it_is_what_transformers_saves_of_any_architecture(raw: dict[str, Any]) -> None:
    assert tensors(config_from_hf(raw, "random")) == transformers_shapes(raw)


def test_a_multimodal_checkpoint_has_the_same_names_behind_a_prefix() -> None:
    import torch
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    raw = hf_config("maverick", "tiny")
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    vision |= {"image_size": 28, "patch_size": 7, "projector_input_dim": 48, "projector_output_dim": 48}
    config = Llama4Config(text_config=raw, vision_config={**vision, "vision_output_dim": 48})
    with torch.device("meta"):
        model = Llama4ForConditionalGeneration(config)
    prefix = "language_model."
    found = {name: tuple(value.shape) for name, value in model.state_dict().items() if name.startswith(prefix)}
    expected = tensors(config_from_hf(raw, "maverick"))
    assert found == {prefix + name: shape for name, shape in expected.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_asks_for_every_tensor_once_and_holds_it(variant: str) -> None:
    config = tiny_config(variant)
    asked: list[tuple[str, tuple[int, ...]]] = []

    def weights(name: str, shape: tuple[int, ...]) -> Recipe:
        asked.append((name, shape))
        return Source(UnreadableData(shape, np.float32))

    model = build_decoder(config, weights, ir.DataType.FLOAT)
    assert asked == list(tensors(config).items())
    held = {
        str(value.name): tuple(value.const_value.shape.numpy())
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, Recipe)
    }
    turned = {name for name in held if name.endswith(("_proj.weight", "router.weight", "lm_head.weight"))}
    assert held == {name: shape[:: -1 if name in turned else 1] for name, shape in asked}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_has_a_kind_and_a_layer(variant: str) -> None:
    config = tiny_config(variant)
    names = list(tensors(config))
    assert {kind_of(name) for name in names} <= set(KINDS)
    layers = [layer_of(name) for name in names if layer_of(name) is not None]
    assert layers == sorted(layers, key=int) and set(layers) == set(range(config.num_hidden_layers))
    outside = [name for name in names if layer_of(name) is None]
    assert [kind_of(name) for name in outside] == ["embedding", "norm", *([] if variant == "mobile" else ["head"])]


def released(variant: str) -> ModelConfig:
    return config_from_hf(hf_config(variant, "full"), variant)


def test_the_released_models_counted_by_hand() -> None:
    """Llama 4 Scout has 109 billion parameters and Maverick 400 billion, vision included; both use 17 billion."""
    attention = 5120 * 5120 * 2 + 5120 * 1024 * 2  # q, o; k, v
    expert, dense, norms = 3 * 5120 * 8192, 3 * 5120 * 16384, 2 * 5120
    outside = 2 * 202048 * 5120 + 5120  # embedding and head; the final norm
    common = 48 * (attention + norms) + outside
    scout = common + 48 * (16 + 1) * expert + 48 * 16 * 5120
    maverick = common + 24 * (128 + 1) * expert + 24 * 128 * 5120 + 24 * dense
    assert (scout, maverick) == (107_769_861_120, 400_711_848_960)
    counts = [parameter_count(released(variant)) for variant in ("scout", "maverick")]
    assert [count.total for count in counts] == [scout, maverick]
    assert [count.active for count in counts] == [scout - 48 * 15 * expert, maverick - 24 * 127 * expert]
    assert [count.active for count in counts] == [17_172_894_720, 17_184_691_200]


def test_a_token_uses_as_many_experts_as_it_chooses() -> None:
    one, two = (parameter_count(tiny_config("maverick", num_experts_per_tok=k)) for k in (1, 2))
    assert one.total == two.total and two.active - one.active == 2 * 3 * 64 * 32  # two routed layers
    dense = parameter_count(tiny_config("guard"))
    assert dense.total == dense.active == sum(map(math.prod, tensors(tiny_config("guard")).values()))


def test_tied_embeddings_count_once() -> None:
    tied, untied = (parameter_count(tiny_config(tie_word_embeddings=flag)) for flag in (True, False))
    assert untied.total - tied.total == 256 * 64


def test_a_slice_of_layers_has_their_tensors() -> None:
    whole, part = tensors(tiny_config("maverick")), tensors(tiny_config("maverick").slice_layers(1, 3))
    in_slice = {1: "0", 2: "1", None: ""}
    expected = {
        name.replace(f"layers.{layer_of(name)}.", f"layers.{in_slice[layer_of(name)]}."): shape
        for name, shape in whole.items()
        if layer_of(name) in in_slice
    }
    assert part == expected
