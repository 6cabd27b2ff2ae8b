"""Token ids of a session: what was fed and not taken back, whatever shares their memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from saved_files import forged

from l4export.errors import InputError
from l4export.runtimes.token_history import TokenHistory
from workshop import LAYOUTS, Workshop, random_ids


@given(st.data())
def test_every_history_stays_what_it_was(data: st.DataObject) -> None:
    """However they are extended, cut and copied: plain lists tell what each must be."""
    made: list[tuple[TokenHistory, list[int]]] = [(TokenHistory([1, 2]), [1, 2])]
    for _ in range(data.draw(st.integers(1, 30))):
        history, plain = data.draw(st.sampled_from(made))
        match data.draw(st.sampled_from(["extend", "extend", "cut", "copy"])):
            case "extend":
                new = data.draw(st.lists(st.integers(0, 99), max_size=5))
                made.append((history.extended(new), plain + new))
            case "cut":
                length = data.draw(st.integers(0, len(plain)))
                made.append((history.cut(length), plain[:length]))
            case _:
                made.append((history.copy(), plain))
        assert all(each.ids.tolist() == due and len(each) == len(due) for each, due in made)


def test_one_token_more_costs_no_copy() -> None:
    history = TokenHistory(range(100)).extended([1])
    assert np.shares_memory(history.ids, history.extended([2]).ids)
    assert not np.shares_memory(history.ids, history.copy().ids)
    with pytest.raises(ValueError, match="read-only"):
        history.ids[0] = 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_session_knows_its_ids(workshop: Workshop, layout: str, tmp_path: Path) -> None:
    engine, ids = workshop.engine("scout", layout), random_ids((2, 40))
    session = engine.session(batch=2)

    def held() -> list[list[int]]:
        return [row.tolist() for row in session.token_ids]

    session.append([ids[0, :20], ids[1, :5]])
    session.step([7, None])
    assert held() == [[*ids[0, :20], 7], ids[1, :5].tolist()]
    with pytest.raises(InputError):
        session.append([[256], [1]])
    session.rewind([1, 0])
    session.append([[], ids[1, 5:9]])
    assert held() == [ids[0, :20].tolist(), ids[1, :9].tolist()]
    copy = session.fork([1, 0, 1])
    session.append([[8], [9]])
    session.save(tmp_path / "s")
    assert [row.tolist() for row in copy.token_ids] == [ids[row, :n].tolist() for row, n in ((1, 9), (0, 20), (1, 9))]
    assert [row.tolist() for row in engine.load_session(tmp_path / "s").token_ids] == held()
    session.reset()
    assert held() == [[], []]


def change(token: int) -> Any:
    def edit(_: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors["0.ids"][1] = token

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        change(-1),
        change(256),
        change(2**62),
        lambda _, tensors: tensors.update({"0.ids": tensors["0.ids"][:1]}),
        lambda _, tensors: tensors.update({"0.ids": tensors["0.ids"].astype(np.int32)}),
        lambda _, tensors: tensors.pop("0.ids"),
    ],
)
def test_ids_of_a_file_are_checked(workshop: Workshop, edit: Any, tmp_path: Path) -> None:
    engine = workshop.engine("scout", "static")
    session = engine.session()
    session.append([1, 2, 3])
    session.save(tmp_path / "s")
    forged(tmp_path / "s", lambda *_: None)
    assert engine.load_session(tmp_path / "s").token_ids[0].tolist() == [1, 2, 3]
    forged(tmp_path / "s", edit)
    with pytest.raises(InputError, match="damaged"):
        engine.load_session(tmp_path / "s")
