"""The formats in which Llama 4 calls tools, as the Python service reads them."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workshop import ROOT


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tool_calls", ROOT / "examples/http_service/tool_calls.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOLS = loaded()
NAMES = {"get_weather", "add", "a.b"}

CALLS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    '{"name": "add", "parameters": {"a": 1, "b": [2, {"c": null}]}}': [("add", {"a": 1, "b": [2, {"c": None}]})],
    ' {"type": "function", "name": "add", "arguments": {}}\n': [("add", {})],
    '{"name": "add", "parameters": {}}; {"name": "a.b", "parameters": {"x": "}"}}': [("add", {}), ("a.b", {"x": "}"})],
    '{"name": "add", "parameters": {}}\n{"name": "add", "parameters": {}}': [("add", {}), ("add", {})],
    '[{"name": "add", "parameters": {}}, {"name": "add", "parameters": {"a": 1}}]': [("add", {}), ("add", {"a": 1})],
    "[add(a=1, b=-2.5), get_weather(city='Paris', days=[1, 2])]": [
        ("add", {"a": 1, "b": -2.5}),
        ("get_weather", {"city": "Paris", "days": [1, 2]}),
    ],
    "<|python_start|>[a.b(x={'y': None}, z=True)]<|python_end|>": [("a.b", {"x": {"y": None}, "z": True})],
    "add()": [("add", {})],
}

TEXTS = (
    "",
    "I call add(a=1).",
    '{"name": "unknown", "parameters": {}}',
    '{"name": "add"}',
    '{"name": "add", "parameters": []}',
    '{"name": "add", "parameters": {}} and so on',
    '{"name": "add", "parameters": {}',
    "[]",
    "{}",
    "[1, 2]",
    "[add(1)]",
    "[add(**{})]",
    "[add(a=b)]",
    "[add(a={1, 2})]",
    "[add(a=b'x')]",
    "[add(a=1e999)]",
    '{"name": "add", "parameters": {"a": NaN}}',
    "[" * 5000,
    "add(a=__import__('os'))",
)


@pytest.mark.parametrize("text", CALLS)
def test_calls(text: str) -> None:
    assert TOOLS.parse_calls(text, NAMES) == CALLS[text]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_text(text: str) -> None:
    assert TOOLS.parse_calls(text, NAMES) is None


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    TOOLS.parse_calls(text, NAMES)


@pytest.mark.parametrize("text", [text for text in CALLS if not text.startswith("add")])
def test_beginnings_of_calls_are_kept_back(text: str) -> None:
    assert all(TOOLS.may_be_calls(text[:end]) for end in range(len(text)))
    assert not TOOLS.may_be_calls("It") and not TOOLS.may_be_calls("<b>")
