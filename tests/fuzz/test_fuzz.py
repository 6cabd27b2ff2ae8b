"""Some seconds of each class of hostile inputs (`make fuzz` runs more), and that the harness sees what goes wrong."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz_json import Pairs, Raw, dumps, mutate_json, nested

CASES = {
    "checkpoint": 60,
    "engine": 100,
    "session": 200,
    "tokenizer": 80,
    "image": 200,
    "pth": 80,
    "quantised": 60,
    "adapter": 60,
    "partial": 40,
    "written": 40,
}


@pytest.mark.parametrize("name", [*CASES, pytest.param("calibration", marks=pytest.mark.slow)])
def test_hostile_inputs_are_refused_or_make_sense(name: str) -> None:
    """In a process of its own: workers are forked, and the tests' own process has threads by now."""
    count = CASES.get(name, 200)
    command = [sys.executable, Path(__file__).parent, "--class", name, "--cases", str(count), "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    _, row = done.stdout.splitlines()[:2]
    _, cases, refused, accepted, *_ = row.split()
    assert int(cases) == count == int(refused) + int(accepted)
    assert int(refused) > count // 20 and int(accepted) > count // 20, row


def test_the_harness_sees_what_goes_wrong() -> None:
    """In a process of its own, too."""
    checks = Path(__file__).with_name("harness_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--noconftest", "-p", "no:cacheprovider", checks]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "100%" in done.stdout, done.stdout + done.stderr


def test_mutations_depend_on_the_seed_alone_and_differ() -> None:
    value = {"a": [1, 2.5, True], "b": {"c": "text", "d": None}}
    made = [dumps(mutate_json(value, random.Random(seed))[0]) for seed in range(200)]
    assert made == [dumps(mutate_json(value, random.Random(seed))[0]) for seed in range(200)]
    assert len(set(made)) > 100 and value == {"a": [1, 2.5, True], "b": {"c": "text", "d": None}}


def test_json_that_python_cannot_say() -> None:
    assert dumps({"a": Pairs([("b", 1), ("b", Raw("1e400"))])}) == '{"a": {"b": 1, "b": 1e400}}'
    assert dumps(nested(2)) == "[[]]" and dumps(nested(2, "{")) == '{"a":{"a":1}}'
