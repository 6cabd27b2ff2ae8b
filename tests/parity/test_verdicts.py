"""What a comparison went through, and when passing it proves nothing. No engine is run."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from l4export.checkpoint import open_checkpoint
from l4export.evidence.exercised import chunk_boundaries, exercised_by_images, exercised_by_length
from l4export.parity.thresholds import Demands
from l4export.parity.verdict import exercised, unjudged
from workshop import Workshop

FLOAT = Demands({"max_relative_difference": 1e-4, "greedy_prefix": 1.0}, 1e-4, 1e-4)


@pytest.fixture
def scout(workshop: Workshop) -> Any:
    """What is asked of a manifest: chunks of 16 tokens, temperatures from token 8 on."""
    config = open_checkpoint(workshop.checkpoint("scout")).config
    return SimpleNamespace(model=config, max_context=256, vision=None)


def statuses(manifest: Any, prefill: int, decode: int, demands: Demands = FLOAT, ties: int = 0) -> dict[str, str]:
    found = exercised(manifest, prefill, decode, None, demands, ties, decode)
    return {each.what: each.status for each in found}


def test_everything_that_some_tokens_go_through(scout: Any) -> None:
    assert set(statuses(scout, 10, 7, ties=2).values()) == {"exercised", "not applicable"}
    assert statuses(scout, 10, 7, ties=2)["images"] == "not applicable"


@pytest.mark.parametrize(
    ("prefill", "decode", "what"),
    [
        (16, 0, "chunk boundaries"),
        (17, 0, "chunk boundaries while decoding"),
        (17, 15, "chunk boundaries while decoding"),
        (7, 0, "temperature beyond its floor"),
        (20, 0, "decoding"),
        (20, 0, "greedy continuation"),
        (20, 0, "nearly tied experts"),
    ],
)
def test_what_they_do_not_go_through(scout: Any, prefill: int, decode: int, what: str) -> None:
    assert statuses(scout, prefill, decode)[what] == "not exercised"


def test_one_more_token_goes_through(scout: Any) -> None:
    assert statuses(scout, 17, 0)["chunk boundaries"] == "exercised"
    assert statuses(scout, 17, 16)["chunk boundaries while decoding"] == "exercised"
    assert statuses(scout, 8, 0)["temperature beyond its floor"] == "exercised"


def test_what_an_engine_cannot_come_to_does_not_apply(scout: Any, workshop: Workshop) -> None:
    short = SimpleNamespace(model=scout.model, max_context=16, vision=None)
    assert [each.status for each in exercised_by_length(short, 16)] == ["not applicable", "exercised"]
    guard = SimpleNamespace(model=open_checkpoint(workshop.checkpoint("guard")).config, max_context=256, vision=None)
    found = statuses(guard, 40, 4)
    assert found["chunk boundaries"] == found["chunk boundaries while decoding"] == "not applicable"
    assert found["temperature beyond its floor"] == found["nearly tied experts"] == "not applicable"
    assert not unjudged(short, FLOAT, 16) and not unjudged(guard, FLOAT, 4)


def test_nothing_is_proven_within_a_chunk(scout: Any) -> None:
    (why,) = unjudged(scout, FLOAT, 16)
    assert why.startswith("no chunk boundary was crossed") and "more than 16 tokens" in why
    assert unjudged(scout, FLOAT, 17) == ()


@pytest.mark.parametrize("limits", [{}, {"feature_difference": 1e-5, "ids_agreement": 1.0}])
def test_nothing_is_proven_where_nothing_is_demanded_of_logits(scout: Any, limits: dict[str, float]) -> None:
    (why,) = unjudged(scout, dataclasses.replace(FLOAT, thresholds=limits), 40)
    assert why.startswith("nothing is demanded of its logits")
    assert unjudged(scout, dataclasses.replace(FLOAT, thresholds=limits | {"kl_mean": 1.0}), 40) == ()


def test_images_are_counted(scout: Any) -> None:
    seeing = SimpleNamespace(model=scout.model, max_context=256, vision=object())
    assert exercised_by_images(seeing, 0).status == "not exercised"
    assert exercised_by_images(seeing, 2).how == "2 shown"
    assert exercised_by_images(scout, 0).status == "not applicable"


def test_boundaries_lie_between_chunks(scout: Any) -> None:
    assert [chunk_boundaries(scout.model, tokens) for tokens in (1, 16, 17, 32, 33)] == [0, 0, 1, 1, 2]
