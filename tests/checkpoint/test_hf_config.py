from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from l4export.checkpoint.hf_config import config_from_hf
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.model.tensors import parameter_count

SCOUT = {
    "model_type": "llama4_text",
    "rope_scaling": {
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "attn_temperature_tuning": 4,
    "bos_token_id": 200000,
    "eos_token_id": [200001, 200007, 200008],
    "pad_token_id": 200018,
}
MAVERICK = {
    "model_type": "llama4",
    "architectures": ["Llama4ForConditionalGeneration"],
    "text_config": {
        "model_type": "llama4_text",
        "num_local_experts": 128,
        "interleave_moe_layer_step": 2,
        "use_qk_norm": False,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "no_rope_layers": [],
        "for_llm_compressor": False,
    },
    "bos_token_id": 200000,
    "eos_token_id": 200001,
    "vision_config": {},
}
TINY = {
    "model_type": "llama4_text",
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
}


def tiny(**changes: object) -> ModelConfig:
    return config_from_hf({**TINY, **changes}, "config.json")


def test_parameter_counts_of_the_released_models() -> None:
    """Fields that a config leaves to transformers' defaults count too."""
    scout = parameter_count(config_from_hf(SCOUT, "s"))
    assert (scout.total, scout.active) == (107_769_861_120, 17_172_894_720)
    maverick = parameter_count(config_from_hf(MAVERICK, "m"))
    assert (maverick.total, maverick.active) == (400_711_848_960, 17_184_691_200)


def test_released_configs() -> None:
    scout, maverick = config_from_hf(SCOUT, "s"), config_from_hf(MAVERICK, "m")
    assert scout.moe_layers == tuple(range(48)) and maverick.moe_layers == tuple(range(1, 48, 2))
    assert [i for i, rope in enumerate(scout.rope_layers) if not rope] == list(range(3, 48, 4))
    assert scout.attn_temperature_tuning is True
    assert scout.eos_token_ids == (200001, 200007, 200008)
    assert (maverick.bos_token_id, maverick.eos_token_ids, maverick.pad_token_id) == (200000, (200001,), None)
    assert scout.is_moe(0) and not maverick.is_moe(0)


def test_scout_divides_29_of_64_frequencies() -> None:
    scout = config_from_hf(SCOUT, "s")
    plain = dataclasses.replace(scout, rope_scaling=None).inv_freq()
    np.testing.assert_allclose(plain / scout.inv_freq(), [1.0] * 35 + [16.0] * 29)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"interleave_moe_layer_step": 2},
        {"interleave_moe_layer_step": 3, "num_hidden_layers": 7},
        {"moe_layers": [2], "interleave_moe_layer_step": 2},
        {"moe_layers": []},
        {"no_rope_layers": []},
        {"no_rope_layers": [0, 1, 1, 0]},
        {"no_rope_layer_interval": 2},
        {"layer_types": ["full_attention", "chunked_attention"] * 2},
        {"rope_scaling": None, "rope_theta": 1e6},
        {"rope_theta": 1e6},
        {"rope_scaling": {**SCOUT["rope_scaling"], "factor": 8.0}, "rope_theta": 1e6},  # type: ignore[dict-item]
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_parameters": {"rope_theta": 1e4, **SCOUT["rope_scaling"]}},  # type: ignore[dict-item]
    ],
)
def test_derived_values_equal_transformers(changes: dict[str, object]) -> None:
    from transformers import Llama4TextConfig

    theirs, ours = Llama4TextConfig(**json.loads(json.dumps({**TINY, **changes}))), tiny(**changes)
    assert list(ours.moe_layers) == list(theirs.moe_layers)
    assert list(ours.rope_layers) == [flag == 1 for flag in theirs.no_rope_layers]
    assert list(ours.chunked_layers) == [kind == "chunked_attention" for kind in theirs.layer_types]
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert (ours.rope_scaling is not None) == (theirs.rope_parameters["rope_type"] == "llama3")
    for name in ("intermediate_size", "intermediate_size_mlp", "rms_norm_eps", "floor_scale", "attn_scale"):
        assert getattr(ours, name) == getattr(theirs, name)
    written = config_from_hf(theirs.to_dict(), "written by transformers")
    ids = {"bos_token_id": None, "eos_token_ids": (), "pad_token_id": None}  # transformers writes useless defaults
    assert dataclasses.replace(written, **ids) == ours  # type: ignore[arg-type]


def test_old_spellings() -> None:
    scaling = {**SCOUT["rope_scaling"]}  # type: ignore[dict-item]
    scaling["type"] = scaling.pop("rope_type")
    assert tiny(rope_scaling=scaling).rope_scaling == config_from_hf(SCOUT, "s").rope_scaling
    assert tiny(attn_temperature_tuning=0).attn_temperature_tuning is False
    assert tiny(floor_scale=8192.0).floor_scale == 8192.0
    assert tiny(head_dim=None).head_dim == 16
    assert tiny(num_key_value_heads=None).num_key_value_heads == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": []},
        {"architectures": "LlamaForCausalLM"},
        {"pad_token_id": -1},
        {"eos_token_id": -1},
        {"bos_token_id": 200000, "eos_token_id": [200001, 200007], "pad_token_id": 200018},
        {"hidden_act": "swish"},
        {"attention_bias": None},
        {"quantization_config": {}},
        {"quantization_config": None},
        {"hidden_size": 64.0, "num_hidden_layers": 4.0, "vocab_size": 256.0, "attention_chunk_size": 8192.0},
        {"num_attention_heads": 4.0, "num_key_value_heads": 2.0, "head_dim": 16.0, "max_position_embeddings": 131072.0},
        {"moe_layers": [0, 1, 1, 2, 3, 3]},
        {"moe_layers": [3.0, 2.0, 1.0, 0.0]},
        {"moe_layers": list(range(8)), "no_rope_layers": [1, 1, 1, 0] * 2},
        {"layer_types": ["chunked_attention"] * 3 + ["full_attention"] * 5},
        {"no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 0},
        {"no_rope_layers": [1.0, 1.0, 1.0, 0.0], "no_rope_layer_interval": None},
        {"moe_layers": [0, 1, 2, 3], "interleave_moe_layer_step": None, "intermediate_size_mlp": 0},
        {"intermediate_size_mlp": None},
        {"rope_scaling": []},
        {"floor_scale": 8192},
        {"initializer_range": "wide", "use_cache": "often", "id2label": {"a": "b"}},
    ],
)
def test_what_does_not_touch_the_computation_does_not_matter(changes: dict[str, object]) -> None:
    """Each of these was refused, and each means the same model to transformers as no change."""
    assert tiny(**changes) == tiny()


def test_special_tokens_that_the_vocabulary_has_are_kept() -> None:
    config = tiny(bos_token_id=1.0, eos_token_id=[-1, 2, 300, 7], pad_token_id=255)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (1, (2, 7), 255)


@pytest.mark.parametrize("unused", [0, None])
def test_fields_that_no_layer_uses(unused: int | None) -> None:
    dense = tiny(moe_layers=[], intermediate_size=unused, num_local_experts=unused, num_experts_per_tok=unused)
    assert dense == dataclasses.replace(tiny(moe_layers=[]), num_local_experts=0, num_experts_per_tok=0)
    cold = {"attn_temperature_tuning": False, "floor_scale": unused, "attn_scale": unused}
    assert tiny(**cold).attn_temperature_tuning is False
    assert tiny(no_rope_layers=[1] * 4, floor_scale=unused) == tiny(no_rope_layers=[1] * 4)
    full = {"layer_types": ["full_attention"] * 4}
    assert tiny(**full, attention_chunk_size=unused).attention_chunk_size is None
    for used in ("intermediate_size", "floor_scale", "attention_chunk_size"):
        if unused == 0 or used != "attention_chunk_size":
            with pytest.raises(InputError, match=used):
                tiny(**{used: unused})


def test_dense_models() -> None:
    guard = tiny(moe_layers=[], interleave_moe_layer_step=0, num_local_experts=0, attention_chunk_size=None)
    assert guard.moe_layers == () and guard.attention_chunk_size is None and not any(guard.chunked_layers)
    assert tiny(num_local_experts=0).moe_layers == ()
    assert tiny(interleave_moe_layer_step=0, num_experts_per_tok=0).moe_layers == ()
    assert all(tiny(no_rope_layer_interval=0).rope_layers) and all(tiny(no_rope_layer_interval=None).rope_layers)


def one_line(error: pytest.ExceptionInfo[InputError], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", "llama"),
        ("model_type", "mixtral"),
        ("model_type", None),
        ("model_type", ["llama4_text\n"]),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("attention_bias", 1),
        ("attention_bias", 0.0),
        ("per_layer_config", {"0": {"head_dim": 32}}),
        ("hidden_size", 0),
        ("hidden_size", 64.5),
        ("hidden_size", -64),
        ("hidden_size", True),
        ("hidden_size", "64\n"),
        ("hidden_size", None),
        ("hidden_size", 10**400),
        ("hidden_size", [64]),
        ("num_hidden_layers", 10**6),
        ("vocab_size", 2**25),
        ("num_local_experts", 5000),
        ("num_key_value_heads", 3),
        ("head_dim", 15),
        ("no_rope_layers", [1, 1]),
        ("no_rope_layers", [1, 1, 2, 0]),
        ("no_rope_layers", [1, 1, True, 0]),
        ("no_rope_layers", "1110"),
        ("no_rope_layer_interval", -1),
        ("layer_types", ["chunked_attention"]),
        ("layer_types", ["sliding_attention"] * 4),
        ("layer_types", [["chunked_attention"]] * 4),
        ("moe_layers", [-1]),
        ("moe_layers", {"0": 1}),
        ("interleave_moe_layer_step", -1),
        ("num_experts_per_tok", 5),
        ("num_experts_per_tok", 0),
        ("attention_chunk_size", 0),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", float("inf")),
        ("rms_norm_eps", "1e-5"),
        ("floor_scale", 0),
        ("floor_scale", 2.5),
        ("floor_scale", 10**400),
        ("attn_scale", -0.1),
        ("attn_temperature_tuning", "yes"),
        ("use_qk_norm", 1),
        ("rope_theta", 0),
        ("rope_theta", -1.0),
        ("eos_token_id", "2"),
        ("eos_token_id", [1, None]),
        ("bos_token_id", [1]),
        ("pad_token_id", 1.5),
        ("rope_scaling", "linear"),
        ("rope_parameters", []),
        ("rope_type", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
        ("rope_type", {"rope_scaling": {"factor": 2.0}}),
        ("factor", {"rope_scaling": {**SCOUT["rope_scaling"], "factor": 0}}),  # type: ignore[dict-item]
        ("low_freq_factor", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
        ("partial_rotary_factor", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    ],
)
def test_refusals_are_one_line_that_names_the_field(name: str, value: object) -> None:
    nested = isinstance(value, dict) and any(key.startswith("rope_") for key in value) and not name.startswith("rope_s")
    with pytest.raises(InputError) as error:
        tiny(**(value if nested else {name: value}))  # type: ignore[arg-type]
    one_line(error, "config.json", name)


@pytest.mark.parametrize(
    "raw", [None, [], "llama4", 3, {"model_type": "llama4"}, {"model_type": "llama4", "text_config": []}]
)
def test_what_is_not_an_object_is_refused(raw: object) -> None:
    with pytest.raises(InputError) as error:
        config_from_hf(raw, "config.json")  # type: ignore[arg-type]
    one_line(error, "config.json")


def test_moe_layers_without_experts() -> None:
    with pytest.raises(InputError) as error:
        tiny(moe_layers=[0], num_local_experts=0)
    one_line(error, "num_local_experts")


@pytest.mark.parametrize("raw", [SCOUT, MAVERICK, {**TINY, "attention_chunk_size": None}])
def test_dict_round_trip(raw: dict[str, object]) -> None:
    config = config_from_hf(raw, "c")
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)), "m") == config


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ModelConfig)])
def test_manifests_are_not_trusted(name: str) -> None:
    good = tiny().to_dict()
    for bad in (
        {key: value for key, value in good.items() if key != name},
        {**good, name: "x\ny"},
        {**good, name: [{}]},
    ):
        with pytest.raises(InputError) as error:
            ModelConfig.from_dict(bad, "manifest.json")
        one_line(error, "manifest.json", name)
    assert ModelConfig.from_dict({**good, "added_later": 1}, "manifest.json") == tiny()
