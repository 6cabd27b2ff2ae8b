"""Images through the runtime of CUDA engines: stand-ins for the driver and the provider, the kernels a CPU's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from seeing import PATCH, prompt, seeing_checkpoint, seen

import cuda_stand_ins as stand_ins
from judged_engines import computing, judged_engine
from l4export import runtimes
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError
from l4export.runtimes.onnxruntime.composition_check import check_composition
from workshop import random_ids


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cuda")
    return judged_engine(seeing_checkpoint(path / "c"), path / "engine")


def test_a_prompt_with_images(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what the same graph says on a CPU; steps of text are recorded once, those with a feature are run."""
    images = seen(built, [(14, 30), (9, 9)])
    ids = prompt(images, [5, 6, 9])
    on_cpu = runtimes.load(built, threads=1, provider="cpu")
    one, two, text = on_cpu.session(), on_cpu.session(batch=2), random_ids(20, 230)
    due = [one.append(ids, images=images), one.append([1]), one.append([2])]
    rows = two.append([ids, text], images=[images, None])
    machine = stand_ins.install(monkeypatch)
    engine = runtimes.load(built, threads=1)
    session = engine.session()
    np.testing.assert_array_equal(session.append(ids, images=images), due[0])
    for tokens, logits in zip(([1], [2]), due[1:], strict=True):
        np.testing.assert_array_equal(session.append(tokens), logits)
    assert [number for number in machine.runs if number != -1] == [1, 1]
    session.reset()
    session._piece = 1  # every call within an image has one token and one row
    before = len(machine.runs)
    # float16 has 11 bits, and products of one row and of many are summed in another order
    np.testing.assert_allclose(session.append(ids, images=images), due[0], rtol=0, atol=2e-2 * np.abs(due[0]).max())
    fed = np.count_nonzero(ids == PATCH)
    assert machine.runs[before:].count(-1) == fed and set(machine.runs[before:]) == {-1, 1}
    np.testing.assert_array_equal(engine.session(batch=2).append([ids, text], images=[images, None]), rows)


def test_counts_that_the_graph_does_not_refuse(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = seen(built, [(9, 9)])
    ids = prompt(images, [2, 3])
    stand_ins.install(monkeypatch)
    session = runtimes.load(built, threads=1).session()
    for tokens, given in ((ids, None), (ids[:5], images), ([*ids, PATCH], images)):
        with pytest.raises(InputError, match="image tokens"):
            session.append(tokens, images=given)


def test_a_card_is_judged_by_text(built: Path) -> None:
    """The check graph takes features too, and is given none."""
    check_composition(built, load_manifest(built), computing()(built))
