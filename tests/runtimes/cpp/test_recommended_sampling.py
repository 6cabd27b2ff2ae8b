"""What generation_config.json says of sampling, as the native library and the Python runtime read it.

tests/runtimes/sampling/test_recommended.py says what is right.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fuzz_json import dumps, mutate_json
from l4export.runtimes.sampling.recommended import recommended_sampling
from native_messages import told
from native_sampling import recommended, settings_of


def both(directory: Path) -> tuple[Any, Any]:
    """What the native library and Python say of a directory."""
    found = told(lambda: settings_of(recommended(directory)))
    return found, told(recommended_sampling, directory)


def test_without_a_file_it_is_greedy(tmp_path: Path) -> None:
    found, due = both(tmp_path)
    assert found == due


@pytest.mark.parametrize(
    "text",
    [
        {"eos_token_id": [1, 2], "temperature": 0.6, "top_p": 0.9},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        {"do_sample": True, "top_k": 0, "min_p": 0.05},
        {"do_sample": True, "top_k": None, "num_beams": 1, "typical_p": 1.0, "num_beam_groups": True},
        {"do_sample": False, "repetition_penalty": 1.2, "suppress_tokens": [], "min_length": False},
        {"do_sample": "yes"},
        {"do_sample": 1},
        {"do_sample": True, "temperature": "hot"},
        {"do_sample": True, "temperature": -1},
        {"do_sample": True, "temperature": 1e999},
        {"do_sample": True, "top_k": 5.0},
        {"do_sample": True, "top_p": True},
        {"do_sample": True, "min_p": {"a": None}},
        {"repetition_penalty": [1.1]},
        {"num_beams": 4},
        {"no_repeat_ngram_size": 3},
        {"suppress_tokens": [1]},
    ],
)
def test_it_says_the_same(tmp_path: Path, text: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(text).replace("Infinity", "1e999"))
    found, due = both(tmp_path)
    assert found == due


@pytest.mark.parametrize("text", ["", "[]", "{", '{"do_sample": NaN}', '{"a": 1, "a": 2}', "[" * 5000])
def test_a_broken_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    found, due = both(tmp_path)
    assert isinstance(found, str) and isinstance(due, str) and "generation_config.json: " in found


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").mkdir()
    found, due = both(tmp_path)
    assert found == due and "not a regular file" in found


def test_files_that_are_almost_right(tmp_path: Path) -> None:
    valid = {"do_sample": True, "temperature": 0.6, "top_k": 40, "top_p": 0.9, "min_p": 0.1}
    valid |= {"repetition_penalty": 1.1, "num_beams": 1, "eos_token_id": [1, 2], "suppress_tokens": None}
    path, rng = tmp_path / "generation_config.json", random.Random(0)
    outcomes = set()
    for _ in range(500):
        changed, what = mutate_json(valid, rng, [0.5, 50, "0.5"])
        path.write_text(dumps(changed), encoding="utf-8", errors="surrogatepass")
        found, due = both(tmp_path)
        if "0" * 40 in what:  # Python's integers have no end, but up to 4300 digits in a file
            continue
        if "half a surrogate pair" in str(found):  # which Python takes
            continue
        assert type(found) is type(due), (what, found, due)
        if isinstance(found, str):
            assert found.startswith(str(path)) and "\n" not in found
        else:
            assert found == due, what
        outcomes.add(type(found))
    assert len(outcomes) == 2
