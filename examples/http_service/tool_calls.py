"""Calls of tools in what a model says: Llama 4's formats."""

from __future__ import annotations

import ast
import json
from collections.abc import Collection
from typing import Any

__all__ = ["may_be_calls", "parse_calls"]

_MARKS = ("<|python_start|>", "<|python_end|>")


def may_be_calls(text: str) -> bool:
    """Whether a text that begins so may turn out to be calls; also a text that has not begun."""
    begun = text.lstrip()
    return not begun or begun[0] in "{[" or _MARKS[0].startswith(begun) or begun.startswith(_MARKS[0])


def parse_calls(text: str, names: Collection[str]) -> list[tuple[str, dict[str, Any]]] | None:
    """Name and arguments of each call, where the whole text consists of calls of these tools; else None.

    They are JSON objects with "name" and "parameters" (or "arguments"), alone, in a list, or one behind the other; or a
    list of Python calls with literals.
    """
    for mark in _MARKS:
        text = text.replace(mark, " ")
    calls = _json_calls(text.strip()) or _python_calls(text.strip())
    try:
        json.dumps(calls, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # what JSON cannot say is no argument
        return None
    return calls if calls and all(name in names for name, _ in calls) else None


def _json_calls(text: str) -> list[tuple[str, dict[str, Any]]] | None:
    values: list[Any] = []
    decoder = json.JSONDecoder()
    try:
        while text:
            value, end = decoder.raw_decode(text)
            values += value if isinstance(value, list) else [value]
            text = text[end:].lstrip(" \n\t;,")
    except (ValueError, RecursionError):
        return None
    calls = [_json_call(value) for value in values]
    return None if None in calls else calls  # type: ignore[return-value]


def _json_call(value: Any) -> tuple[str, dict[str, Any]] | None:
    match value:
        case {"name": str(name), "parameters": dict(arguments)} | {"name": str(name), "arguments": dict(arguments)}:
            return name, arguments
    return None


def _python_calls(text: str) -> list[tuple[str, dict[str, Any]]] | None:
    try:
        tree = ast.parse(text, mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        return [_python_call(node) for node in nodes]
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _python_call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or node.args or any(word.arg is None for word in node.keywords):
        raise ValueError("not a call with named arguments")
    arguments = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
    return ast.unparse(node.func), arguments
