"""Engines and sessions that are closed: memory is free, and what is then asked is refused in one line."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from l4export import runtimes
from l4export.errors import InputError
from l4export.runtimes.engine import Engine
from l4export.runtimes.session import Session
from workshop import Workshop, assert_close, random_ids

AFTER: dict[str, Callable[[Session, Any], object]] = {
    "append": lambda session, _: session.append([1]),
    "step": lambda session, _: session.step([1]),
    "rewind": lambda session, _: session.rewind(0),
    "fork": lambda session, _: session.fork(),
    "save": lambda session, path: session.save(path / "s"),
    "reset": lambda session, _: session.reset(),
    "tokens": lambda session, _: session.tokens(0),
    "checked": lambda session, _: session.checked([1]),
    "kv_bytes": lambda session, _: session.kv_bytes,
}
OF_AN_ENGINE: dict[str, Callable[[Engine], object]] = {
    "session": lambda engine: engine.session(),
    "load_session": lambda engine: engine.load_session("none"),
    "generate": lambda engine: engine.generate([1]),
    "generate_batch": lambda engine: engine.generate_batch([[1]]),
    "prepare": lambda engine: engine.prepare([{"role": "user", "content": "Hi"}]),
    "text": lambda engine: engine.text,
    "recommended_sampling": lambda engine: engine.recommended_sampling,
    "provider": lambda engine: engine.provider,
    "threads": lambda engine: engine.threads,
    "forget_images": lambda engine: engine.forget_images(),
    "inference": lambda engine: engine.inference,  # type: ignore[attr-defined]
}


@pytest.fixture
def engine(workshop: Workshop) -> Engine:
    return runtimes.load(workshop.engine_path("scout", "static"), threads=1)


@pytest.mark.parametrize("name", AFTER)
def test_a_closed_session_is_refused(workshop: Workshop, name: str, tmp_path: Any) -> None:
    with workshop.engine("scout", "static").session() as session:
        session.append([1, 2])
    with pytest.raises(InputError, match="the session is closed; start a new one") as caught:
        AFTER[name](session, tmp_path)
    assert "\n" not in str(caught.value) and session.lengths.tolist() == [2]
    session.close()


def test_a_closed_session_frees_its_cache(workshop: Workshop) -> None:
    session = workshop.engine("scout", "static").session()
    session.append([1, 2])
    cache = weakref.ref(session._cache)
    session.close()
    gc.collect()
    assert cache() is None


def test_a_finished_generation_frees_its_own_session_and_no_other(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")
    generation = engine.generate([1, 2], 3, None, ())
    next(generation)
    cache = weakref.ref(generation._continuation._session._cache)
    list(generation)
    gc.collect()
    assert cache() is None and len(generation.row.tokens) == 3 and list(generation) == []
    session = engine.session()
    list(engine.generate([1, 2], 3, None, (), session=session))
    assert session.append([1]).shape == (1, 1, 256)


def test_a_generation_on_a_closed_session(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")
    with engine.session() as session:
        generation = engine.generate([1, 2], session=session)
        next(generation)
    with pytest.raises(InputError, match="the session is closed"):
        next(generation)


@pytest.mark.parametrize("name", OF_AN_ENGINE)
def test_a_closed_engine_is_refused(engine: Engine, name: str) -> None:
    with engine:
        assert engine.provider
    with pytest.raises(InputError, match="the engine is closed; load it again") as caught:
        OF_AN_ENGINE[name](engine)
    assert "\n" not in str(caught.value) and engine.manifest.max_context == 256
    engine.close()


def test_what_an_engine_does_not_have_is_an_attribute_error(engine: Engine) -> None:
    with pytest.raises(AttributeError, match="no attribute 'sesion'"):
        engine.sesion  # type: ignore[attr-defined]  # noqa: B018


def test_sessions_and_generations_outlive_their_engine(workshop: Workshop, engine: Engine) -> None:
    ids = random_ids(20)
    expected = list(engine.generate(ids, 4, None, ()))
    session, generation = engine.session(), engine.generate(ids, 4, None, ())
    inference = weakref.ref(engine.inference)  # type: ignore[attr-defined]
    engine.close()
    assert_close(session.append(ids)[0], workshop.reference("scout").logits(ids[None])[0])
    assert list(generation) == expected
    session.close()
    del generation
    gc.collect()
    assert inference() is None
