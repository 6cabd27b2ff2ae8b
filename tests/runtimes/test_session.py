"""Sessions: what they return, what they refuse, and that a refusal leaves them as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from l4export.errors import InputError
from l4export.runtimes.cache.kv_cache import Call
from l4export.runtimes.sampling.settings import Sampling
from workshop import LAYOUTS, Workshop, assert_close, random_ids

layouts = pytest.mark.parametrize("layout", LAYOUTS)


@layouts
def test_last_only_gives_the_last_row_of_each_prompt(workshop: Workshop, layout: str) -> None:
    engine = workshop.engine("scout", layout)
    prompts = [random_ids(n, seed=n).tolist() for n in (20, 7)]
    logits = engine.session(batch=2).append(prompts, last_only=True)
    assert logits.shape == (2, 1, 256)
    for row, prompt in enumerate(prompts):
        assert_close(logits[row, 0], engine.session().append(prompt)[0, -1])


@layouts
def test_a_prompt_longer_than_one_call_takes(workshop: Workshop, layout: str) -> None:
    """Prompts are fed in pieces of at most `prefill_max_tokens` (512), alone and in a batch."""
    engine = workshop.engine("scout", layout, 1200)
    ids = random_ids((2, 1100), seed=4)
    expected = workshop.reference("scout").logits(ids)
    assert_close(engine.session().append(ids[0])[0], expected[0])
    both = engine.session(batch=2).append([ids[0, :1100], ids[1, :700]])
    assert_close(both[0], expected[0])
    assert_close(both[1, :700], expected[1, :700])


@layouts
def test_a_refused_append_leaves_the_session_as_it_was(workshop: Workshop, layout: str) -> None:
    engine = workshop.engine("scout", layout)
    ids = random_ids(60)
    session = engine.session(capacity=60)
    session.append(ids[:40])
    for bad in ([256], [-1], [], random_ids(21), [[1], [2]], [1.5], [[1, 2]] * 3):
        with pytest.raises(InputError) as caught:
            session.append(bad)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert session.lengths.tolist() == [40]
    assert_close(session.append(ids[40:])[0], workshop.reference("scout").logits(ids[None])[0, 40:])


@layouts
def test_a_failure_in_the_middle_of_an_append_is_undone(
    workshop: Workshop, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = workshop.engine("maverick", layout)
    ids = random_ids((2, 60), seed=5)
    session = engine.session(batch=2)
    session.append(ids[:, :20])
    run, calls = session._cache.run, []

    def fails_on_the_second_row(call: Call) -> np.ndarray:
        calls.append(call.row)
        if call.row == 1:
            raise RuntimeError("device lost")
        return run(call)

    monkeypatch.setattr(session._cache, "run", fails_on_the_second_row)
    with pytest.raises(InputError, match="device lost"):
        session.append(ids[:, 20:40])
    monkeypatch.undo()
    assert calls == ([0, 0, 1] if layout == "chunked" else [0, 1])
    assert session.lengths.tolist() == [20, 20]
    assert_close(session.append(ids[:, 20:]), workshop.reference("maverick").logits(ids)[:, 20:])


@layouts
def test_reset_forgets_everything(workshop: Workshop, layout: str) -> None:
    session = workshop.engine("scout", layout).session()
    ids = random_ids(30)
    first = session.append(ids)
    session.append(random_ids(50, seed=9))
    session.reset()
    np.testing.assert_array_equal(session.append(ids), first)


def test_static_buffers_are_updated_in_place(workshop: Workshop) -> None:
    session = workshop.engine("scout", "static").session(capacity=64)
    addresses = [buffer.ctypes.data for buffer in session._cache.arrays]
    session.append(random_ids(30))
    assert addresses == [buffer.ctypes.data for buffer in session._cache.arrays]
    for buffer in session._cache.arrays:
        assert np.abs(buffer[0, :, :30]).min(axis=2).max() > 0
        assert not buffer[0, :, 30:].any()


def test_an_interruption_while_inputs_are_bound(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the decoder then has bound is freed: the next call, of a shape from before, must bind anew."""
    engine, ids = workshop.engine("scout", "static"), random_ids(12)
    expected = engine.session().append(ids)[0]
    session = engine.session()
    session.append(ids[:1])
    io = session._cache._bindings[0].io
    bind = io.bind_input

    def interrupted(*arguments: Any) -> None:
        bind(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(io, "bind_input", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.append(ids[1:7])
    monkeypatch.undo()
    bound = []
    monkeypatch.setattr(io, "bind_input", lambda name, *rest: (bound.append(name), bind(name, *rest)))
    for at in range(1, len(ids)):
        assert_close(session.append(ids[at : at + 1])[0], expected[at : at + 1])
    assert bound == ["input_ids"]


@layouts
def test_masks_do_not_grow_with_the_sequence(workshop: Workshop, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = workshop.engine("scout", layout).session(batch=2)
    session.append(random_ids((2, 90)))
    run, shapes = session._cache.run, []

    def watched(call: Call) -> np.ndarray:
        shapes.append(call.inputs()["attention_mask"].shape)
        return run(call)

    monkeypatch.setattr(session._cache, "run", watched)
    session.append([[1], [2]])
    assert shapes == [(2, 1)]


@pytest.mark.parametrize("start", [-1, 256, [0, 256], [0], [0, 0, 0], 1.5, [[0], [1, 2]]])
def test_impossible_starts_are_refused(workshop: Workshop, start: object) -> None:
    with pytest.raises(InputError) as caught:
        workshop.engine("scout", "chunked").session(batch=2, start=start)  # type: ignore[arg-type]
    assert "start" in str(caught.value) and "\n" not in str(caught.value)


@layouts
def test_the_context_counts_from_position_0(workshop: Workshop, layout: str) -> None:
    session = workshop.engine("scout", layout).session(batch=2, start=[250, 100])
    assert session.capacity == 156
    with pytest.raises(InputError, match=r"row 0: 7 tokens from position 250 .* --max-context"):
        session.append([random_ids(7), random_ids(7)])
    assert session.append([random_ids(6), random_ids(7)]).shape == (2, 7, 256)
    with pytest.raises(InputError, match=r"row 0: 1 tokens from position 256"):
        session.append([[1], [2]])
    assert np.isfinite(session.append([[], [2]])[1]).all()
    assert session.positions.tolist() == [256, 108]


@pytest.mark.parametrize(("batch", "capacity"), [(0, None), (-1, None), (1, 0), (1, 257)])
def test_impossible_sessions_are_refused(workshop: Workshop, batch: int, capacity: int | None) -> None:
    with pytest.raises(InputError):
        workshop.engine("scout", "static").session(batch, capacity)


class TestGeneration:
    def test_ends_with_a_stop_token(self, workshop: Workshop) -> None:
        engine = workshop.engine("scout", "static")
        prompt = random_ids(20).tolist()
        free = list(engine.generate(prompt, max_new_tokens=20, stop_token_ids=()))
        stop = free[7]
        assert list(engine.generate(prompt, max_new_tokens=20, stop_token_ids=[stop])) == free[: free.index(stop) + 1]

    def test_ends_where_the_context_ends(self, workshop: Workshop) -> None:
        engine = workshop.engine("scout", "static")
        tokens = list(engine.generate(random_ids(250).tolist(), max_new_tokens=50, stop_token_ids=()))
        assert len(tokens) == 256 - 250 + 1  # the last one is chosen from a full cache and need not be stored

    def test_refuses_a_prompt_longer_than_the_context(self, workshop: Workshop) -> None:
        with pytest.raises(InputError, match="--max-context"):
            list(workshop.engine("scout", "static").generate(random_ids(257).tolist()))

    def test_refuses_an_empty_prompt(self, workshop: Workshop) -> None:
        with pytest.raises(InputError, match="empty"):
            list(workshop.engine("scout", "static").generate([]))

    def test_is_repeatable_with_a_seed_and_alike_in_a_batch(self, workshop: Workshop) -> None:
        engine = workshop.engine("scout", "static")
        prompts = [random_ids(n, seed=n).tolist() for n in (12, 30)]
        five, six = (Sampling(1.0, top_p=0.9, seed=seed) for seed in (5, 6))
        alone = list(engine.generate(prompts[0], 16, five, ()))
        assert alone == list(engine.generate(prompts[0], 16, five, ()))
        assert alone != list(engine.generate(prompts[0], 16, six, ()))
        assert alone == [step[0] for step in engine.generate_batch(prompts, 16, five, ())]

    def test_rows_that_have_ended_yield_none(self, workshop: Workshop) -> None:
        engine = workshop.engine("scout", "static")
        prompts = [random_ids(n, seed=n).tolist() for n in (12, 30)]
        free = [list(engine.generate(prompt, max_new_tokens=12, stop_token_ids=())) for prompt in prompts]
        stop = next(token for token in free[0] if token not in free[1])
        end = free[0].index(stop) + 1
        steps = list(engine.generate_batch(prompts, max_new_tokens=12, stop_token_ids=[stop]))
        assert [step[0] for step in steps] == free[0][:end] + [None] * (12 - end)
        assert [step[1] for step in steps] == free[1]

    def test_steps_are_the_callers_own(self, workshop: Workshop) -> None:
        engine, prompts = workshop.engine("scout", "static"), [[1, 2, 3], [4]]
        limits: Any = {"max_new_tokens": 6, "stop_token_ids": ()}
        expected, got = list(engine.generate_batch(prompts, **limits)), []
        for step in engine.generate_batch(prompts, **limits):
            got.append(list(step))
            step[:] = [None]
        assert got == expected


class TestThirdPartyClients:
    """The graph itself, fed by a client that knows only the usual names."""

    def _feeds(self, workshop: Workshop, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        caches = {
            value.name: np.zeros((len(ids), value.shape[1], 0, value.shape[3]), np.float32)
            for value in workshop.engine("scout", "concat").inference.get_inputs()
            if value.name.startswith("past")
        }
        return {"input_ids": ids, "attention_mask": mask, **caches}

    @layouts
    def test_every_position_without_logits_to_keep(self, workshop: Workshop, layout: str) -> None:
        ids = random_ids((1, 16 if layout == "chunked" else 40))  # whoever feeds the graph itself cuts at 16
        feeds = self._feeds(workshop, ids, np.ones(ids.shape, np.int64))
        logits = workshop.engine("scout", layout).inference.run(["logits"], feeds)[0]
        assert_close(logits, workshop.reference("scout").logits(ids))

    @pytest.mark.parametrize("mask", [[0, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0], [2, 1, 1, 0]])
    def test_a_mask_it_cannot_honour_is_refused(self, workshop: Workshop, mask: list[int]) -> None:
        feeds = self._feeds(workshop, random_ids((1, 4)), np.asarray([mask]))
        with pytest.raises(Exception, match="rows_must_be_padded_on_the_right"):
            workshop.engine("scout", "static").inference.run(["logits"], feeds)

    @pytest.mark.parametrize("token", [-1, 256, 2**40])
    def test_a_token_outside_the_vocabulary_is_refused(self, workshop: Workshop, token: int) -> None:
        feeds = self._feeds(workshop, np.asarray([[1, token, 3]]), np.ones((1, 3), np.int64))
        with pytest.raises(Exception, match="token_ids_must_be_in_the_vocabulary"):
            workshop.engine("scout", "static").inference.run(["logits"], feeds)

    def test_a_sequence_beyond_the_context_is_refused(self, workshop: Workshop) -> None:
        feeds = self._feeds(workshop, random_ids((1, 257)), np.ones((1, 257), np.int64))
        with pytest.raises(Exception, match="sequence_must_fit_max_context"):
            workshop.engine("scout", "static").inference.run(["logits"], feeds)


def test_logits_of_another_shape_are_refused(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = workshop.engine("scout", "concat")
    session = engine.session()
    run = session._cache.run
    monkeypatch.setattr(session._cache, "run", lambda call: run(call)[:, :0])
    with pytest.raises(InputError, match="logits of shape"):
        session.append([1, 2])
