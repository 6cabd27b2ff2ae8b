"""generation_config.json: what transformers' `generate` would do with it, and what is refused."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from fuzz_json import dumps, mutate_json
from l4export.errors import InputError
from l4export.runtimes.sampling.recommended import recommended_sampling
from l4export.runtimes.sampling.settings import Sampling


def recommended(directory: Path, **settings: Any) -> Sampling:
    (directory / "generation_config.json").write_text(json.dumps(settings))
    return recommended_sampling(directory)


def test_without_a_file_it_is_greedy(tmp_path: Path) -> None:
    assert recommended_sampling(tmp_path) == Sampling()


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        ({"eos_token_id": [1, 2], "temperature": 0.6, "top_p": 0.9}, Sampling()),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, Sampling(0.6, 50, 0.9)),
        ({"do_sample": True, "top_k": 0, "min_p": 0.05}, Sampling(1.0, 0, 1.0, 0.05)),
        ({"do_sample": True, "top_k": None, "num_beams": 1, "typical_p": 1.0}, Sampling(1.0, 50)),
        ({"do_sample": False, "repetition_penalty": 1.2, "suppress_tokens": []}, Sampling(repetition_penalty=1.2)),
    ],
)
def test_what_it_says(tmp_path: Path, settings: dict[str, Any], due: Sampling) -> None:
    assert recommended(tmp_path, **settings) == due


def test_what_transformers_writes(tmp_path: Path) -> None:
    GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[1, 2]).save_pretrained(tmp_path)
    assert recommended_sampling(tmp_path) == Sampling(0.6, 50, 0.9)


def test_its_defaults_are_those_of_transformers() -> None:
    defaults = GenerationConfig._get_default_generation_params()
    assert {name: defaults[name] for name in ("temperature", "top_k", "top_p")} == {
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": "yes"}, "do_sample is neither"),
        ({"do_sample": 1}, "do_sample is neither"),
        ({"do_sample": True, "temperature": "hot"}, "temperature is 'hot'"),
        ({"do_sample": True, "temperature": -1}, "temperature is -1"),
        ({"do_sample": True, "top_k": 5.0}, r"top_k is 5\.0"),
        ({"do_sample": True, "top_p": True}, "top_p is True"),
        ({"repetition_penalty": [1.1]}, "repetition_penalty is"),
        ({"num_beams": 4}, "has num_beams, which this runtime does not do"),
        ({"no_repeat_ngram_size": 3}, "has no_repeat_ngram_size"),
        ({"suppress_tokens": [1]}, "has suppress_tokens"),
    ],
)
def test_what_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"generation_config\.json: {message}") as caught:
        recommended(tmp_path, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"do_sample": NaN}', '{"a": 1, "a": 2}', "[" * 5000])
def test_a_broken_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=r"generation_config\.json: "):
        recommended_sampling(tmp_path)


def test_files_that_are_almost_right(tmp_path: Path) -> None:
    """Each gives settings within their ranges, or a refusal of one line that begins with the file."""
    valid = {"do_sample": True, "temperature": 0.6, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1}
    valid |= {"num_beams": 1, "eos_token_id": [1, 2], "suppress_tokens": None}
    path, rng = tmp_path / "generation_config.json", random.Random(0)
    outcomes = set()
    for _ in range(1500):
        changed, what = mutate_json(valid, rng, [0.5, 50, "0.5"])
        path.write_text(dumps(changed), encoding="utf-8", errors="surrogatepass")
        try:
            found = recommended_sampling(tmp_path)
        except InputError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error), what
            outcomes.add("refused")
        else:
            assert 0 <= found.temperature < math.inf and 0 < found.top_p <= 1 and 0 <= found.min_p <= 1, what
            assert found.top_k >= 0 and found.repetition_penalty > 0, what
            outcomes.add("taken")
    assert outcomes == {"refused", "taken"}
