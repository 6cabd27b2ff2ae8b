"""RoPE settings in many spellings: the frequencies that transformers computes from them, or a refusal."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4export.checkpoint.hf_config import config_from_hf
from l4export.errors import InputError

TINY = {
    "model_type": "llama4_text",
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
}
LLAMA3 = {"factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def theirs(raw: dict[str, Any]) -> tuple[np.ndarray, float]:
    """transformers' own inverse frequencies and the factor of what is rotated."""
    import transformers
    from transformers.models.llama4.modeling_llama4 import Llama4TextRotaryEmbedding

    transformers.utils.logging.set_verbosity_error()
    raw = json.loads(json.dumps(raw))
    if raw["model_type"] == "llama4":
        config = transformers.Llama4Config.from_dict(raw).text_config
    else:
        config = transformers.Llama4TextConfig.from_dict(raw)
    rotation = Llama4TextRotaryEmbedding(config)
    return rotation.inv_freq.numpy(), rotation.attention_scaling


def agree(raw: dict[str, Any]) -> None:
    config = config_from_hf(raw, "config.json")
    frequencies, factor = theirs(raw)
    found = config.inv_freq()
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, frequencies, rtol=3e-6, err_msg=json.dumps(raw))
    assert config.rope_attention_factor == pytest.approx(factor, rel=1e-6)


OLD = [
    {},
    {"rope_scaling": None},
    {"rope_scaling": {}},
    {"rope_scaling": []},
    {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    {"rope_scaling": {"type": "llama3", **LLAMA3, "factor": 8, "low_freq_factor": 1, "high_freq_factor": 1}},
    {"rope_scaling": {"rope_type": "llama3", "type": "linear", **LLAMA3, "rope_theta": 1000}},
    {"rope_scaling": {"type": "linear", "factor": 2}},
    {"rope_scaling": {"rope_type": "default", "factor": 4.0}},
]
NEW = [
    {},
    {"rope_parameters": None},
    {"rope_parameters": {}},
    {"rope_parameters": {"rope_theta": 7e4}},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3}},
    {"rope_parameters": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 64.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 3.5, "rope_theta": 10000}},
    {"rope_parameters": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
]
BESIDE = [
    {},
    {"rope_theta": 30000},
    {"rope_theta": 1e6, "original_max_position_embeddings": 512},
    {"partial_rotary_factor": None},
    {"partial_rotary_factor": 1.0},
]


@pytest.mark.parametrize("nested", [False, True])
def test_spellings_of_transformers_4_and_5_alone_and_together(nested: bool) -> None:
    for old, new, beside in itertools.product(OLD, NEW, BESIDE[2:3] if nested else BESIDE):
        raw = {**TINY, **old, **new, **beside}
        agree({"model_type": "llama4", "text_config": raw, "rope_theta": 5.0, "rope_scaling": None} if nested else raw)


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    "rope",
    [
        *({"rope_type": "llama3", **dict(zip(LLAMA3, values, strict=True))}
          for values in ((16, 1, 1, 8192), (8.0, 1.0, 4.0, 8192), (32.0, 0.5, 4.0, 1024), (4.0, 4.0, 1.0, 64),
                         (0.5, 1.0, 2.0, 256))),
        {"rope_type": "linear", "factor": 0.5},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 3},
        YARN,
        {**YARN, "factor": None, "original_max_position_embeddings": 256},
        {**YARN, "factor": 0.5},
        {**YARN, "original_max_position_embeddings": 128, "beta_fast": 16, "beta_slow": 2.0},
        {**YARN, "original_max_position_embeddings": 2, "truncate": False},
        {**YARN, "attention_factor": 1.7, "mscale": 1.0, "mscale_all_dim": 0.5},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0},
        {**YARN, "mscale": 2, "mscale_all_dim": 2, "beta_fast": None, "beta_slow": 0},
        {**YARN, "beta_fast": 1, "beta_slow": 32, "truncate": False},
        {**YARN, "original_max_position_embeddings": 10**6},
    ],
)  # fmt: skip
@pytest.mark.parametrize("head_dim", [4, 16, 128])
@pytest.mark.parametrize("theta", [500000.0, 10000, 2])
def test_types(rope: dict[str, Any], head_dim: int, theta: float) -> None:
    agree({**TINY, "head_dim": head_dim, "rope_parameters": {"rope_theta": theta, **rope}})
    agree({**TINY, "head_dim": head_dim, "rope_theta": theta, "rope_scaling": rope})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1] * 16, "long_factor": [2] * 16}}, "longrope"),
        ({"rope_scaling": {"rope_type": "proportional", "factor": 2}}, "proportional"),
        ({"rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.5}}, "part of each head"),
        ({"rope_scaling": {"rope_type": "mrope"}}, "'mrope'; expected default, linear, dynamic, llama3 or yarn"),
        ({"rope_scaling": {"rope_type": None, "factor": 2}}, "rope_type is null"),
        ({"rope_scaling": {"rope_type": ["yarn"], "factor": 2}}, "rope_type is an array"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_type is null"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "'full_attention' is set apart"),
        ({"rope_parameters": {"chunked_attention": None, "rope_theta": 1e4}}, "'chunked_attention' is set apart"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor is '2'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 1e20}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}, "head_dim": 2}, "dynamic"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor is missing"),
        ({"rope_scaling": {**YARN, "attention_factor": 0}}, "attention_factor is 0"),
        ({"rope_scaling": {**YARN, "beta_fast": -1}}, "beta_fast is -1"),
        ({"rope_scaling": {**YARN, "truncate": None}}, "truncate is null"),
        ({"rope_scaling": {**YARN, "mscale": "1", "mscale_all_dim": 1}}, "mscale is '1'"),
        ({"rope_scaling": YARN, "rope_theta": 1}, "rope_theta is 1"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "original_max_position_embeddings": None}, "is null"),
        ({"rope_theta": None}, "rope_theta is null"),
        ({"rope_parameters": [], "rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope_parameters: expected"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"partial_rotary_factor": None}}, "partial_rotary_factor is null"),
    ],
)
def test_refusals(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        config_from_hf({**TINY, **changes}, "config.json")
    assert words in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith("config.json")


numbers = st.sampled_from([None, 0, 0.25, 1, 1.0, 2, 2.0, 3.5, 16, 64.0, 1000, 8192, 500000.0, -1, "2", True, 1e30])
kinds = st.sampled_from([None, "default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional", "su"])
inner = st.one_of(
    st.sampled_from([None, {}, [], "", 0]),
    st.fixed_dictionaries(
        {},
        optional={
            "rope_type": kinds,
            "type": kinds,
            "truncate": st.booleans(),
            "full_attention": st.just({"rope_theta": 3.0}),
            **dict.fromkeys((*LLAMA3, "rope_theta", "attention_factor", "beta_fast", "beta_slow", "mscale",
                             "mscale_all_dim", "partial_rotary_factor"), numbers),
        },
    ),
)  # fmt: skip
spellings = st.fixed_dictionaries(
    {},
    optional={
        "rope_scaling": inner,
        "rope_parameters": inner,
        **dict.fromkeys(("rope_theta", "original_max_position_embeddings", "partial_rotary_factor"), numbers),
        "head_dim": st.sampled_from([2, 4, 6, 32]),
        "max_position_embeddings": st.sampled_from([1, 7, 4096, 10**6]),
        "layer_types": st.just(["full_attention"] * 4),
    },
)


@settings(max_examples=400, deadline=None)
@given(spellings)
def test_any_spelling_is_read_as_transformers_reads_it_or_refused(changes: dict[str, Any]) -> None:
    raw = {**TINY, **changes}
    with contextlib.suppress(InputError):
        config_from_hf(raw, "config.json")
        agree(raw)
