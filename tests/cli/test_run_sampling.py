"""`l4export run`: options of sampling, stop strings, log probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import write_tokenizer

from l4export import runtimes
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.runtimes.engine import Engine
from l4export.runtimes.sampling.settings import Sampling
from workshop import Workshop, copy_checkpoint

Run = Callable[..., tuple[int, str, str]]
RECOMMENDED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


@pytest.fixture(scope="module")
def engine(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """With a tokenizer and a generation_config.json."""
    path = tmp_path_factory.mktemp("sampling")
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), path / "c")
    write_tokenizer(checkpoint)
    (checkpoint / "generation_config.json").write_text(json.dumps(RECOMMENDED))
    build(checkpoint, path / "e", BuildOptions(max_context=128))
    return runtimes.load(path / "e", threads=1)


@pytest.fixture
def run(engine: Engine, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        fixed = ("--token-ids", "1,2,3", "--max-new-tokens", "20", "--threads", "1")
        with pytest.raises(SystemExit) as caught:
            main(["run", str(engine.directory), *fixed, *map(str, arguments)])
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return call


def document(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


ALL = ("--temperature", 0.8, "--top-k", 30, "--top-p", 0.9, "--min-p", 0.01, "--repetition-penalty", 1.2, "--seed", 4)


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ((), Sampling()),
        (ALL, Sampling(0.8, 30, 0.9, 0.01, 1.2, 4)),
        (("--recommended-sampling", "--seed", 4), Sampling(0.6, 50, 0.9, seed=4)),
        (("--recommended-sampling", "--temperature", 1, "--top-k", 0, "--seed", 4), Sampling(1, 0, 0.9, seed=4)),
    ],
)
def test_options_are_those_of_python(run: Run, engine: Engine, options: tuple[Any, ...], sampling: Sampling) -> None:
    assert document(run("--json", *options))["token_ids"] == list(engine.generate([1, 2, 3], 20, sampling))


def test_stop_strings_and_log_probabilities(run: Run, engine: Engine) -> None:
    free = document(run("--json", *ALL))
    stop = free["text"][4:6]
    found = document(run("--json", "--stop", "never", "--stop", stop, "--logprobs", 2, *ALL))
    assert found["text"] == free["text"][: free["text"].index(stop)] and found["finish_reason"] == "stop string"
    assert found["token_ids"] == free["token_ids"][: len(found["token_ids"])]
    assert [each["token"] for each in found["logprobs"]] == found["token_ids"]
    assert all(each["logprob"] < 0 and len(each["top"]) == 2 for each in found["logprobs"])
    assert "logprobs" not in free
    code, out, err = run("--stop", stop, "--stats", *ALL)
    assert code == 0 and out == found["text"] + "\n" and err.strip().endswith("ended by stop string")
    assert run(*ALL)[1] == free["text"] + "\n"


@pytest.mark.parametrize(
    ("options", "word"),
    [(("--logprobs", 2), "--json"), (("--stop", ""), "stop_strings"), (("--json", "--logprobs", 1000), "logprobs is")],
)
def test_what_is_refused(run: Run, options: tuple[Any, ...], word: str) -> None:
    code, out, err = run(*options)
    assert code == 2 and out == "" and word in err and len(err.strip().splitlines()) == 1


def test_recommendations_that_cannot_be_followed(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    (checkpoint / "generation_config.json").write_text('{"num_beams": 4}')
    build(checkpoint, tmp_path / "e", BuildOptions(max_context=128))
    for options, code in ((["--recommended-sampling"], 2), ([], 0)):
        with pytest.raises(SystemExit) as caught:
            main(["run", str(tmp_path / "e"), "--token-ids", "1", "--max-new-tokens", "2", *options])
        assert int(caught.value.code or 0) == code
        assert ("num_beams" in capsys.readouterr().err) == bool(code)
