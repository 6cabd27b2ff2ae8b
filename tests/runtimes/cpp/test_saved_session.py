"""Files of sessions that somebody has changed: the native runtime takes those that Python takes, and no others."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fuzz_files import mutate_safetensors
from fuzz_session import forged_session
from l4export import runtimes
from l4export.errors import InputError, L4Error
from native_library import NativeError
from native_messages import told_alike
from native_session import NativeEngine
from workshop import LAYOUTS, Workshop, random_ids

CASES = 120


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_changed_file(workshop: Workshop, tmp_path: Path, layout: str) -> None:
    python, native = workshop.engine("scout", layout), NativeEngine(workshop.engine_path("scout", layout))
    session = python.session(batch=2, capacity=60)
    session.append([random_ids(37), random_ids(5, seed=1)])
    session.save(tmp_path / "whole")
    whole, rng = (tmp_path / "whole").read_bytes(), random.Random(layout)
    path, refused, taken = tmp_path / "changed", 0, 0
    for number in range(CASES):
        change = forged_session if number % 3 else mutate_safetensors
        data, told = change(whole, rng)
        path.write_bytes(data)
        try:
            due = python.load_session(path)
        except L4Error as error:
            with pytest.raises(NativeError) as caught:
                native.load_session(path)
            assert caught.value.status == error.exit_code, told
            if told_alike(data.decode(errors="replace"), str(error)):
                assert str(caught.value) == str(error), told
            refused += 1
        else:
            found = native.load_session(path)
            assert found.lengths == due.lengths.tolist(), told
            rows = range(len(due.lengths))
            assert [found.token_ids(row) for row in rows] == [ids.tolist() for ids in due.token_ids], told
            taken += 1
    assert refused > CASES // 3 and taken > 0


def test_a_file_that_holds_nothing(workshop: Workshop, tmp_path: Path) -> None:
    python, native = workshop.engine("scout", "static"), NativeEngine(workshop.engine_path("scout", "static"))
    python.session().save(tmp_path / "python")
    native.session().save(tmp_path / "native")
    assert (tmp_path / "python").read_bytes() == (tmp_path / "native").read_bytes()
    ids = random_ids(9).tolist()
    np.testing.assert_array_equal(
        native.load_session(tmp_path / "python").append([ids]), native.session().append([ids])
    )


@pytest.mark.parametrize("name", ["missing/s", "folder"])
def test_a_place_that_cannot_be_written(workshop: Workshop, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    native = NativeEngine(workshop.engine_path("scout", "static"))
    with pytest.raises(NativeError, match="cannot be written") as caught:
        native.session().save(tmp_path / name)
    assert caught.value.status == 4
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    "rewritten", [lambda raw: json.dumps(raw, indent=4), lambda raw: json.dumps(raw, sort_keys=True)]
)
def test_a_manifest_that_somebody_has_reformatted(
    workshop: Workshop, tmp_path: Path, rewritten: Callable[[Any], str]
) -> None:
    """An engine is its manifest's bytes in both runtimes: each loads what the other saved, of this engine alone."""
    built = workshop.engine_path("scout", "static")
    engine = shutil.copytree(built, tmp_path / "engine", copy_function=os.link)
    manifest = json.loads((built / "manifest.json").read_text())
    (engine / "manifest.json").unlink()
    (engine / "manifest.json").write_text(rewritten(manifest))
    python, native = runtimes.load(engine), NativeEngine(engine)
    ids = [random_ids(9).tolist()]
    for opened, name in ((python, "python"), (native, "native")):
        session = opened.session()
        session.append(ids)
        session.save(tmp_path / name)
        assert python.load_session(tmp_path / name).lengths.tolist() == [9]
        assert native.load_session(tmp_path / name).lengths == [9]
        for other in (workshop.engine("scout", "static"), NativeEngine(built)):
            with pytest.raises((InputError, NativeError), match="saved with another engine"):
                other.load_session(tmp_path / name)
