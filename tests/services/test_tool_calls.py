"""The formats in which Llama 4 calls tools, as both services read them."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native_service import compiled
from workshop import ROOT


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tool_calls", ROOT / "examples/http_service/tool_calls.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PYTHON = loaded()
NAMES = ["get_weather", "add", "a.b"]

CALLS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    '{"name": "add", "parameters": {"a": 1, "b": [2, {"c": null}]}}': [("add", {"a": 1, "b": [2, {"c": None}]})],
    ' {"type": "function", "name": "add", "arguments": {}}\n': [("add", {})],
    '{"name": "add", "parameters": {}}; {"name": "a.b", "parameters": {"x": "}\\""}}': [
        ("add", {}),
        ("a.b", {"x": '}"'}),
    ],
    '{"name": "add", "parameters": {}}\n{"name": "add", "parameters": {}}': [("add", {}), ("add", {})],
    '[{"name": "add", "parameters": {}}, {"name": "add", "parameters": {"a": 1}}]': [("add", {}), ("add", {"a": 1})],
    "[add(a=1, b=-2.5), get_weather(city='Paris', days=[1, 2])]": [
        ("add", {"a": 1, "b": -2.5}),
        ("get_weather", {"city": "Paris", "days": [1, 2]}),
    ],
    "<|python_start|>[a.b(x={'y': None}, z=True)]<|python_end|>": [("a.b", {"x": {"y": None}, "z": True})],
    "add()": [("add", {})],
    "add(a='caf\u00e9 \\'x\\'', b=\"\\n\")": [("add", {"a": "caf\u00e9 'x'", "b": "\n"})],
}

TEXTS = (
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
)


@pytest.mark.parametrize("text", CALLS)
def test_calls(text: str) -> None:
    assert PYTHON.parse_calls(text, NAMES) == CALLS[text]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_text(text: str) -> None:
    assert PYTHON.parse_calls(text, NAMES) is None


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    PYTHON.parse_calls(text, NAMES)


def test_values_of_any_depth_are_read() -> None:
    """Up to some depth Python can read and write them; near it, read them alone."""
    for depth in (*range(600, 1000), 5000):
        PYTHON.parse_calls('{"name": "add", "parameters": {"a": ' + "[" * depth + "]" * depth + "}}", NAMES)


@pytest.mark.parametrize("text", [text for text in CALLS if not text.startswith("add")])
def test_beginnings_of_calls_are_kept_back(text: str) -> None:
    assert all(PYTHON.may_be_calls(text[:end]) for end in range(len(text)))
    assert not PYTHON.may_be_calls("It") and not PYTHON.may_be_calls("<b>")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = ("tool_calls", "python_calls", "json")
    return compiled("tool_calls_program.cpp", sources, tmp_path_factory.mktemp("tool_calls"))


def read(program: Path, texts: list[str]) -> list[dict[str, Any]]:
    asked = json.dumps({"names": NAMES, "texts": texts})
    done = subprocess.run([program], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


@pytest.mark.slow  # compiles the reader of the service in C++
def test_calls_in_cpp_are_those_of_python(program: Path) -> None:
    texts = [*CALLS, *TEXTS, "add(a=1, a=2)"]
    for text, told in zip(texts, read(program, texts), strict=True):
        expected = PYTHON.parse_calls(text, NAMES)
        assert told["calls"] == (expected and [list(call) for call in expected]), text
        assert told["may_be"] == PYTHON.may_be_calls(text), text


@pytest.mark.slow
def test_any_text_is_read_in_cpp(program: Path) -> None:
    """Whatever is made of calls by changing characters: without a fault, which the sanitizers would report."""
    chance, texts = random.Random(0), []
    for _ in range(5000):
        text = list(chance.choice([*CALLS, *TEXTS])[:200])
        for _ in range(chance.randrange(4)):
            if text:
                text[chance.randrange(len(text))] = chance.choice("[](){}\"'\\,=:.-+0aé\0")
        texts.append("".join(text))
    assert len(read(program, texts)) == len(texts)
