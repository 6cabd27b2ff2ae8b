"""A build opens its inputs once, and plans once for each graph that it writes."""

from __future__ import annotations

import builtins
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from l4export.checkpoint import hf_checkpoint
from l4export.compiler import compile as compiler
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.quantization.policy import standard_policy
from l4export.runtimes.text.codec import TextCodec
from workshop import ROOT, Workshop, copy_checkpoint, random_ids


class Counted:
    """How often a build did what should be done once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times: Counter[str] = Counter()
        for place, name in ((hf_checkpoint, "_open"), (compiler, "build_decoder"), (TextCodec, "open")):
            self._count(monkeypatch, place, name)

    def _count(self, monkeypatch: pytest.MonkeyPatch, place: object, name: str) -> None:
        original = getattr(place, name)

        def counted(*arguments: object, **options: object) -> object:
            self.times[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(place, name, counted)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each file was opened by Python code, by its name."""
    times: Counter[str] = Counter()

    def counting(original: Callable[..., object]) -> Callable[..., object]:
        def counted(file: object, *arguments: object, **options: object) -> object:
            if isinstance(file, str | os.PathLike):
                times[Path(file).name] += 1
            return original(file, *arguments, **options)

        return counted

    monkeypatch.setattr(os, "open", counting(os.open))
    counted = counting(io.open)
    monkeypatch.setattr(io, "open", counted)
    monkeypatch.setattr(builtins, "open", counted)
    yield times


def test_auto_with_a_quantised_cache_opens_everything_once(
    workshop: Workshop, tmp_path: Path, counted: Counted, read: Counter[str]
) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("guard"), tmp_path / "c")
    (tmp_path / "ids.json").write_text(json.dumps(random_ids(300).tolist()))
    (tmp_path / "kv.json").write_text(json.dumps(random_ids(300, seed=1).tolist()))
    options = BuildOptions(
        bits_per_weight=6.0,
        kv_dtype="int8",
        max_context=128,
        calibrate=tmp_path / "ids.json",
        kv_calibrate=tmp_path / "kv.json",
    )
    read.clear()
    build(checkpoint, tmp_path / "e", options)
    assert counted.times["_open"] == 1
    assert counted.times["build_decoder"] == 2  # the engine's graph, and the one that scales are measured with
    assert read["ids.json"] == read["kv.json"] == 1
    assert read["config.json"] == read["model.safetensors"] == 1  # what is parsed and mapped gives the digest too


def test_texts_of_one_file_are_tokenised_once(tmp_path: Path, counted: Counted, read: Counter[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "examples/kjv/held_out.txt").read_text()[:4000])
    options = BuildOptions(
        policy=standard_policy("int4"),
        kv_dtype="int8",
        max_context=128,
        layers=(0, 1),
        calibrate=text,
        kv_calibrate=text,
    )
    read.clear()
    build(ROOT / "examples/kjv/model", tmp_path / "e", options)
    assert read["model.safetensors"] == read["config.json"] == 1
    assert read["text.txt"] == counted.times["open"] == counted.times["_open"] == 1


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        (BuildOptions(), 1),
        (BuildOptions(policy=standard_policy("int4"), kv_layout="chunked"), 1),
        (BuildOptions(kv_dtype="int4"), 2),
        (BuildOptions(target="onnx", policy=standard_policy("fp8"), activations="fp8"), 2),
    ],
)
def test_a_build_plans_once_for_each_graph(
    workshop: Workshop, tmp_path: Path, counted: Counted, options: BuildOptions, graphs: int
) -> None:
    build(workshop.checkpoint("guard"), tmp_path / "e", options)
    assert counted.times["build_decoder"] == graphs
