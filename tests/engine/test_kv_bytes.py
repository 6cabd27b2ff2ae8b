"""The KV cache's bytes: the published figures, what sessions allocate, and the formula's cases."""

from __future__ import annotations

import dataclasses

import pytest

from l4export.checkpoint.hf_config import config_from_hf
from l4export.checkpoint.sample import hf_config
from l4export.engine.kv_cache import KV_DTYPES, kv_bytes, kv_capacities, layer_kv_bytes
from l4export.model.config import ModelConfig
from l4export.runtimes.engine import Engine
from workshop import Workshop


def model(variant: str, size: str = "full") -> ModelConfig:
    return config_from_hf(hf_config(variant, size), variant)


@pytest.mark.parametrize("variant", ["scout", "maverick"])
@pytest.mark.parametrize(
    ("tokens", "static", "chunked"),
    [
        (8192, 1.61, 1.61),
        (131072, 25.77, 7.65),
        (1048576, 206.2, 52.75),
        (10_000_000, 1966.1, 492.7),
        (10485760, 2061.6, 516.6),
    ],
)
def test_full_size_in_half_precision(variant: str, tokens: int, static: float, chunked: float) -> None:
    """GB, for both models; rounded as they were written down."""
    config = model(variant)
    for layout, expected in (("static", static), ("concat", static), ("chunked", chunked)):
        got = kv_bytes(config, layout, "fp16", tokens) / 1e9
        assert got == pytest.approx(expected, abs=0.051 if expected > 100 else 0.0051)


def test_beyond_the_chunk_a_token_takes_a_quarter() -> None:
    """12 of Scout's 48 layers grow, by 2 * 8 * 128 * 2 bytes each; before, all do."""
    config = model("scout")
    grown = {
        n: kv_bytes(config, "chunked", "fp16", n + 1) - kv_bytes(config, "chunked", "fp16", n) for n in (8191, 8192)
    }
    assert grown == {8191: 196608, 8192: 49152}


@pytest.mark.parametrize(("dtype", "bytes_"), [("fp32", 64), ("fp16", 32), ("int8", 16), ("int4", 8)])
def test_a_slot_by_dtype(dtype: str, bytes_: int) -> None:
    """A key and a value of two heads of 16 elements."""
    config = model("scout", "tiny")
    assert layer_kv_bytes(config, 1, dtype) == 2 * 2 * bytes_
    assert layer_kv_bytes(config, 7, dtype, batch=3) == 3 * 7 * 2 * 2 * bytes_


def test_capacities() -> None:
    """Tiny chunks have 16 tokens; the fourth layer sees everything."""
    config = model("scout", "tiny")
    assert kv_capacities(config, "chunked", 100) == (16, 16, 16, 100)
    assert kv_capacities(config, "chunked", 10) == (10, 10, 10, 10)
    assert kv_capacities(config, "static", 100) == (100,) * 4


def test_layer_types_decide_and_not_the_rotation() -> None:
    config = dataclasses.replace(model("scout", "tiny"), chunked_layers=(False, True, False, True))
    assert kv_capacities(config, "chunked", 100) == (100, 16, 100, 16)


def test_without_chunks_both_layouts_are_the_same() -> None:
    config = dataclasses.replace(model("guard", "tiny"), attention_chunk_size=None, chunked_layers=(False,) * 4)
    for dtype in KV_DTYPES:
        assert kv_bytes(config, "chunked", dtype, 4096) == kv_bytes(config, "static", dtype, 4096)


@pytest.mark.parametrize("layout", ["static", "chunked"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_session_allocates_as_much(workshop: Workshop, layout: str, batch: int) -> None:
    engine: Engine = workshop.engine("scout", layout)
    session = engine.session(batch, capacity=100)
    assert session.kv_bytes == kv_bytes(engine.config, layout, "fp32", 100, batch)
