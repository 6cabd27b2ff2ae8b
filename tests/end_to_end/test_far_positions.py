"""Ten million tokens: sessions that start far out, against float64, where float32 angles of positions would fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.runtimes.engine import Engine
from numpy_llama4 import NumpyLlama4
from workshop import LAYOUTS, VARIANTS, Workshop, copy_checkpoint, edit_config, random_ids

CONTEXT, START, TOKENS = 10_485_760, 9_999_900, 90
# float32 through four layers, on logits of up to ten: it is a few times 1e-6
CLOSE = 1e-4

variants = pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.xdist_group(v)) for v in VARIANTS])


def far_engine(workshop: Workshop, tmp_path: Path, variant: str, layout: str) -> Engine:
    checkpoint = copy_checkpoint(workshop.checkpoint(variant), tmp_path / "checkpoint")
    edit_config(checkpoint, max_position_embeddings=CONTEXT)
    build(checkpoint, tmp_path / "engine", BuildOptions(kv_layout=layout, max_context=CONTEXT))
    return runtimes.load(tmp_path / "engine", threads=1)


@variants
def test_the_definition_is_that_of_transformers(workshop: Workshop, variant: str) -> None:
    ids = random_ids(TOKENS)
    expected = workshop.reference(variant).logits(ids[None])[0]
    assert np.abs(NumpyLlama4(workshop.checkpoint(variant)).logits(ids) - expected).max() < CLOSE


@variants
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_session_that_starts_far_out(workshop: Workshop, tmp_path: Path, variant: str, layout: str) -> None:
    ids = random_ids(TOKENS)
    expected = NumpyLlama4(workshop.checkpoint(variant)).logits(ids, START)
    session = far_engine(workshop, tmp_path, variant, layout).session(capacity=TOKENS, start=START)
    got = [session.append(ids[:50])] + [session.append(ids[at : at + 1]) for at in range(50, TOKENS)]
    assert np.abs(np.concatenate(got, axis=1)[0] - expected).max() < CLOSE
    assert session.positions.tolist() == [START + TOKENS]


@pytest.mark.parametrize("variant", ["scout", "maverick", "mobile"])
def test_float32_angles_of_such_positions_would_fail(workshop: Workshop, variant: str) -> None:
    """And so would a model that took the far text for the beginning, where temperature or chunks matter."""
    ids, definition = random_ids(TOKENS), NumpyLlama4(workshop.checkpoint(variant))
    expected = definition.logits(ids, START)
    assert np.abs(definition.logits(ids, START, np.float32) - expected).max() > 100 * CLOSE
    assert np.abs(definition.logits(ids) - expected).max() > 100 * CLOSE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_at_different_distances(workshop: Workshop, tmp_path: Path, layout: str) -> None:
    """One far out within a chunk, one at a chunk's beginning, one at 0; fed together, one by one, saved and forked."""
    starts, definition = (START, 9_999_904, 0), NumpyLlama4(workshop.checkpoint("scout"))
    ids = random_ids((3, TOKENS), seed=1)
    expected = np.stack([definition.logits(row, start) for row, start in zip(ids, starts, strict=True)])
    engine = far_engine(workshop, tmp_path, "scout", layout)
    session = engine.session(batch=3, capacity=TOKENS, start=starts)
    logits = session.append([ids[0, :3], ids[1, :40], ids[2, :17]])
    for row, count in enumerate((3, 40, 17)):
        assert np.abs(logits[row, :count] - expected[row, :count]).max() < CLOSE
    session.save(tmp_path / "session")
    for other in (session.fork(), engine.load_session(tmp_path / "session"), session):
        for step in range(20):
            at = other.lengths.copy()
            logits = other.append(ids[[0, 1, 2], at][:, None])
            assert np.abs(logits[:, 0] - expected[[0, 1, 2], at]).max() < CLOSE, step
    session.rewind(session.lengths)
    assert session.positions.tolist() == list(starts)
    assert np.abs(session.append(ids[:, :30])[:, :30] - expected[:, :30]).max() < CLOSE
