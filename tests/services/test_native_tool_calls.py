"""Calls of tools as the service in C++ reads them, against the one in Python."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from native_library import run
from native_service import SOURCE, needs_its_packages

from workshop import ROOT

pytestmark = pytest.mark.slow  # compiles the service's reader of calls

NAMES = ["get_weather", "add", "a.b"]
TEXTS = [
    '{"name": "add", "parameters": {"a": 1, "b": [2, {"c": null}]}}',
    ' {"type": "function", "name": "add", "arguments": {}}\n',
    '{"name": "add", "parameters": {}}; {"name": "a.b", "parameters": {"x": "}\\""}}',
    '{"name": "add", "parameters": {}}\n{"name": "add", "parameters": {}}',
    '[{"name": "add", "parameters": {}}, {"name": "add", "parameters": {"a": 1}}]',
    "[add(a=1, b=-2.5), get_weather(city='Paris', days=[1, 2])]",
    "<|python_start|>[a.b(x={'y': None}, z=True)]<|python_end|>",
    "add()",
    "add(a='caf\u00e9 \\'x\\'', b=\"\\n\")",
    "",
    " \n<|pyt",
    "I call add(a=1).",
    '{"name": "unknown", "parameters": {}}',
    '{"name": "add"}',
    '{"name": "add", "parameters": []}',
    '{"name": "add", "parameters": {}} and so on',
    '{"name": "add", "parameters": {}',
    *("[]", "{}", "[1, 2]", "[add(1)]", "[add(**{})]", "[add(a=b)]", "[add(a={1, 2})]", "[add(a=b'x')]"),
    "[add(a=1e999)]",
    '{"name": "add", "parameters": {"a": NaN}}',
    "[" * 5000,
    "add(a=__import__('os'))",
    "add(a=1, a=2)",
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_its_packages()
    made = tmp_path_factory.mktemp("tool_calls") / "tool_calls"
    sources = [Path(__file__).parent / "tool_calls_program.cpp"]
    sources += [SOURCE / f"{name}.cpp" for name in ("tool_calls", "python_calls", "json")]
    sanitized = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    run("c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", *sanitized, f"-I{SOURCE}", *sources, "-o", made)
    return made


def read(program: Path, texts: list[str]) -> list[dict[str, Any]]:
    asked = json.dumps({"names": NAMES, "texts": texts})
    done = subprocess.run([program], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


def in_python(module: ModuleType, text: str) -> Any:
    calls = module.parse_calls(text, NAMES)
    return calls if calls is None else [list(call) for call in calls]


def test_calls_are_those_that_python_reads(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples/http_service")
    import tool_calls

    del sys.modules["tool_calls"]
    for text, told in zip(TEXTS, read(program, TEXTS), strict=True):
        assert told["calls"] == in_python(tool_calls, text), text
        assert told["may_be"] == tool_calls.may_be_calls(text), text


def test_any_text_is_read(program: Path) -> None:
    """Whatever is made of calls by changing characters: without a fault, which the sanitizers would report."""
    chance, texts = random.Random(0), []
    for _ in range(5000):
        text = list(chance.choice(TEXTS)[:200])
        for _ in range(chance.randrange(4)):
            if text:
                text[chance.randrange(len(text))] = chance.choice("[](){}\"'\\,=:.-+0aé\0")
        texts.append("".join(text))
    assert len(read(program, texts)) == len(texts)
