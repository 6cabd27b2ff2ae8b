"""The reference's config: of any config.json that l4export reads, transformers and l4export make the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4export.checkpoint import Checkpoint
from l4export.checkpoint.hf_config import config_from_hf
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.reference.transformers_model import reference_config
from l4export.storage.opened_file import OpenedFile

BASE = {
    "model_type": "llama4_text",
    "architectures": ["Llama4ForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "max_position_embeddings": 4096,
    "attention_chunk_size": 16,
    "floor_scale": 8,
    "attn_scale": 0.1,
    "rms_norm_eps": 1e-5,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "tie_word_embeddings": False,
    "moe_layers": [0, 1, 2, 3],
    "interleave_moe_layer_step": 1,
    "no_rope_layers": [1, 1, 1, 0],
    "no_rope_layer_interval": 4,
    "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 16.0, "low_freq_factor": 1.0,
                        "high_freq_factor": 1.0, "original_max_position_embeddings": 8192},
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
    "hidden_act": "silu",
    "attention_bias": False,
    "dtype": "bfloat16",
    "use_cache": True,
}  # fmt: skip
SCALARS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "rms_norm_eps", "use_qk_norm", "attn_temperature_tuning", "tie_word_embeddings", "max_position_embeddings",
)  # fmt: skip


def unread(config: ModelConfig, raw: dict[str, Any]) -> Checkpoint:
    """A checkpoint of which nothing but the config is looked at; any file that is open will do."""
    return Checkpoint(Path("c"), config, raw, {}, "", (), OpenedFile(Path(__file__)), None, b"", {})


def reference(raw: dict[str, Any], config: ModelConfig) -> Any:
    """What `parity` loads for a checkpoint with this config.json."""
    return reference_config(unread(config, raw))


def assert_same(config: ModelConfig, theirs: Any) -> None:
    """All that decides what is computed; widths and scales only where a layer uses them."""
    from transformers.models.llama4.modeling_llama4 import Llama4TextRotaryEmbedding

    layers = range(config.num_hidden_layers)
    used = list(SCALARS)
    if config.moe_layers:
        used += ["num_local_experts", "num_experts_per_tok", "intermediate_size"]
    if len(config.moe_layers) < len(layers):
        used.append("intermediate_size_mlp")
    if config.attn_temperature_tuning and not all(config.rope_layers):
        used += ["floor_scale", "attn_scale"]
    if any(config.chunked_layers):
        used.append("attention_chunk_size")
    for name in used:
        assert getattr(config, name) == getattr(theirs, name), name
    assert config.moe_layers == tuple(layer for layer in layers if layer in theirs.moe_layers)
    assert config.rope_layers == tuple(bool(theirs.no_rope_layers[layer]) for layer in layers)
    chunked = tuple(theirs.layer_types[layer] == "chunked_attention" for layer in layers)
    whole = theirs.attention_chunk_size is None or theirs.attention_chunk_size >= 2**31 - 1
    assert config.chunked_layers == chunked or (whole and not any(config.chunked_layers))
    rotation = Llama4TextRotaryEmbedding(theirs)
    np.testing.assert_allclose(config.inv_freq(), rotation.inv_freq.numpy(), rtol=3e-6)
    assert config.rope_attention_factor == pytest.approx(rotation.attention_scaling)


def own_reading(raw: dict[str, Any]) -> Any:
    """What transformers makes of a config.json as it is; None if it refuses it."""
    import transformers

    text = json.loads(json.dumps(raw.get("text_config", raw)))
    text.pop("quantization_config", None)
    try:
        return transformers.Llama4TextConfig.from_dict(text)
    except Exception:
        return None


DELETED = "deleted"
values = st.sampled_from(
    [DELETED, None, 0, 1, 2, 3, 4, 8, 64, -1, 0.0, 1.0, 2.0, 4.0, 64.0, 1.5, 1e-6, True, False, "x", "swish", [], {},
     [0], [1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [3, 3, 1], [1.0, 0.0, 1.0, 1.0], [-1], [None], ["full_attention"] * 4,
     ["chunked_attention"] * 6, ["x"], 200001, [200001, 5], 10**400, {"a": 1}, {"quant_method": "fp8"},
     {"rope_type": "linear", "factor": 2}]
)  # fmt: skip
fields = st.sampled_from([*BASE, "rope_scaling", "rope_theta", "quantization_config", "initializer_range", "id2label"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(fields, values, min_size=1, max_size=3), st.booleans())
def test_any_config_that_is_read_is_what_transformers_computes_with(changes: dict[str, Any], nested: bool) -> None:
    raw: dict[str, Any] = {name: value for name, value in {**BASE, **changes}.items() if value != DELETED}
    if nested:
        raw = {"model_type": "llama4", "text_config": raw}
    try:
        config = config_from_hf(raw, "config.json")
    except InputError as error:
        assert str(error).startswith("config.json") and "\n" not in str(error) and len(str(error)) < 300
        return
    assert_same(config, reference(raw, config))
    no_experts = not config.num_local_experts  # transformers would make layers of none
    if (theirs := own_reading(raw)) is not None and not no_experts:
        assert_same(config, theirs)


def test_every_field_alone() -> None:
    """The same, for every field and value, and not too much is refused."""
    read = 0
    for name in [*BASE, "rope_scaling", "rope_theta"]:
        for value in values.elements:  # type: ignore[attr-defined]
            raw: dict[str, Any] = {key: item for key, item in {**BASE, name: value}.items() if item != DELETED}
            try:
                config = config_from_hf(raw, "config.json")
            except InputError:
                continue
            read += 1
            assert_same(config, reference(raw, config))
            if (theirs := own_reading(raw)) is not None:
                assert_same(config, theirs)
    assert read > 300


def test_a_slice_has_its_layers_of_the_whole() -> None:
    raw = {**BASE, "no_rope_layer_interval": None, "layer_types": None}
    config = config_from_hf(raw, "config.json")
    checkpoint = unread(config, raw)
    assert_same(config.slice_layers(2, 4), reference_config(checkpoint, (2, 4)))
    with pytest.raises(InputError, match="2:5"):
        reference_config(checkpoint, (2, 5))
