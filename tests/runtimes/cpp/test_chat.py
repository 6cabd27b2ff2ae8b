"""The native runtime's chat templates, against the Python runtime's."""

from __future__ import annotations

import itertools
import json
import re
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
from chat_cases import (
    AS_PARTS,
    AS_TEXT,
    CHAT,
    FEATURES,
    FILES,
    LLAMA4,
    MIXED,
    PARTS,
    SHOW,
    SPELLED,
    TEXT,
    TOOLS,
)
from chat_expressions import EXPRESSIONS, VARIABLES
from hypothesis import HealthCheck, given, settings
from tiny_tokenizers import opened, templated, write_tokenizer
from transformers.models.llama4.processing_llama4 import chat_template

from native_chats import encode_chat, native_template, outcome, python_chat, render_chat
from native_library import NativeError
from native_tokenizer import NativeTokenizer

CALL = {
    "type": "function",
    "function": {"name": "mul", "arguments": {"a": 6, "b": 'é\'s "<x>"', "c": [1.5, None, True]}},
}
IMAGE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and this?"}]}
CHATS: list[list[dict[str, Any]]] = [
    [],
    CHAT,
    AS_TEXT,
    AS_PARTS,
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": " 6 · 7?\r\n🙂\u00a0\n"}],
    [{"role": "system", "content": "Terse."}, {"role": "user", "content": "Hi"}, IMAGE],
    [*CHAT[:2], {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "42"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "6", "reasoning": "why", "x": None}],
]


def assert_same(native: NativeTokenizer, codec: Any, messages: Any, **options: Any) -> None:
    assert outcome(render_chat, native, messages, **options) == outcome(codec.render_chat, messages, **options)
    assert outcome(encode_chat, native, messages, **options) == outcome(codec.encode_chat, messages, **options)


# --- templates ------------------------------------------------------------------------------------------------------


SOURCES = {"small": LLAMA4, "show": SHOW, "parts": PARTS, "text": TEXT, "mixed": MIXED, "released": chat_template}


@pytest.mark.parametrize("name", SOURCES)
def test_conversations(name: str, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, chat_template=SOURCES[name])
    native, codec = NativeTokenizer(folder), opened(folder)
    for chat, tools, generate in itertools.product(CHATS, TOOLS, [True, False]):
        assert_same(native, codec, chat, tools=tools, add_generation_prompt=generate, date_string="1 Jan")


def test_features() -> None:
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot|>"}
    native, chat = (
        native_template(FEATURES, **special),
        [*CHAT, {"role": "assistant", "content": "6", "thinking": "why"}],
    )
    for name, source in FEATURES.items():
        assert render_chat(native, chat, chat_template=name) == templated(source, **special).render_chat(chat), name


SCOPES = {
    "a macro sees what is set later": "{% macro f() %}{{ x }}{% endmacro %}{{ f() }}{% set x = 1 %}{{ f() }}",
    "a loop does not see what is set later": "{% for i in [1] %}{{ v }}{% endfor %}{% set v = 1 %}{{ v }}",
    "a loop keeps nothing": "{% set x = 0 %}{% for i in [1, 2] %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}",
    "a branch sets": (
        "{% if n %}{% set x = 1 %}{% elif y %}{% set z = 1 %}{% else %}{% set x = 2 %}{% endif %}{{ x }}{{ z }}"
    ),
    "a branch that is not taken": "{% if not n %}{% set v = 1 %}{% endif %}{{ v }}",
    "a set block": "{% set x %}a{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y }}",
    "with": "{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% set a = 3 %}{{ a }}{% endwith %}{{ a }}",
    "filter": "{% filter upper | trim %} a{% set q = 1 %}{{ q }} {% endfilter %}{{ q }}",
    "defaults": "{% macro f(a, b=a, c='x') %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(1) }}{{ f(1, c=2) }}{{ f() }}",
    "rest": (
        "{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, 3, k=4) }}"
        "{{ f(*[1, 2], **{'z': 1}) }}"
    ),
    "call": "{% macro f(a) %}<{{ caller(a) }}>{% endmacro %}{% call(x) f(2) %}{{ x }}{{ n }}{% endcall %}",
    "the loop of a loop": (
        "{% for i in [1, 2] %}{% set o = loop %}{% for j in 'ab' %}{{ o.index }}{{ loop.index }}"
        "{% endfor %}{% endfor %}"
    ),
    "a loop's neighbours": (
        "{% for i in [1, 2, 3] %}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.revindex }}"
        "{{ loop.changed(i > 1) }}{{ loop.cycle('a', 'b') }}{% endfor %}"
    ),
    "a condition that the body changes": (
        "{% set s = namespace(m=3) %}{% for i in range(9) if i < s.m %}{% set s.m = 5 %}{{ i }}"
        "{{ loop.last }}{% endfor %}"
    ),
    "a length that a condition decides": (
        "{% for i in range(9) if i % 2 %}{{ loop.length }}{{ loop.index }}{% else %}no{% endfor %}"
    ),
    "recursion": (
        "{% for i in [[1, [[2, []]]]] recursive %}{{ i[0] }}{{ loop.depth }}{% set v = 2 %}"
        "{{ loop(i[1]) }}{% endfor %}{{ v }}"
    ),
    "break": (
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}"
        "{{ i }}{% else %}x{% endfor %}"
    ),
    "spaces": (
        "  {%- if n %}\n  a  \n  {%+ if n %}\n\tb\n  {% endif -%}\n\n c\n{%- endif %}\n  {# x -#}  \n d {{- 1 -}}  e\n"
    ),
    "no trimming": "{% if n +%}\na\n{%- endif +%}\n{# x +#}\nb\r\nc\r{% raw -%} {{ x }} {% if %} {%- endraw %}\n|\n\n",
    "generator": "{% set g = l | map('string') %}{{ g | list }}{{ g | list }}",
    "nothing": "",
    "undefined": "{{ zz | last }}{{ s.k | first }}{{ s.k | reverse | list }}{{ zz | join }}{{ zz | length }}",
    "print": "{% print 1, 'a' %}{{ 'a' 'b' }}{{ '\\x41\\u00e9\\n\\q\\101\\é' }}{{ 0x1f }}{{ 1_0.5e1 }}",
    "case": "{{ 'ǅaß ﬁ ΑΣ'.upper() }}{{ 'ΑΣ ΑΣΑ Σ İ'.lower() }}{{ \"they're ǆ\".title() }}{{ 'ŉx'.capitalize() }}",
    "printed": (
        "{{ ['\\t\\u200b\\xad\"', 'a\\'b', 1e16, 1e-5, 123456789.0, -0.0, (1,), {}, {'a': none}] }}{{ namespace(a=1) }}"
    ),
    "splitting": (
        "{{ ' a b  c '.split(none, 1) }}{{ ' a b  c '.rsplit(none, 1) }}{{ ' a '.split(none, 0) }}"
        "{{ ' a '.rsplit(none, 0) }}{{ ' '.split(none, 0) }}{{ 'a,b,,c'.rsplit(',', 2) }}{{ ',a,'.rsplit(',', 1) }}"
        "{{ 'aaa'.rsplit('aa') }}{{ 'aaa'.split('aa') }}{{ 'a'.rsplit('ab') }}"
    ),
    "found": (
        "{{ 'abab'.rfind('ab') }}{{ ''.rfind('') }}{{ 'é€é'.rfind('é') }}{{ 'ab'.rfind('') }}{{ 'ab'.count('') }}"
        "{{ 'é€é'.find('€', 1) }}{{ 'ab'.find('b', 3) }}{{ '' in 'a' }}{{ 'a' in '' }}{{ 'a,b,c'.rpartition(',') }}"
    ),
    "quotients of infinities": "{{ -1.0 // 1e999 }} {{ 1.0 // -1e999 }} {{ 7.5 // -2 }} {{ 0.0 ** -1e999 }}",
    "a loop that has been compared with itself": (
        "{% for i in [1, 2] %}{{ loop.changed(loop) }}{{ loop.changed([loop, i]) }}{% endfor %}"
    ),
    "safe": "{{ s | safe }}{{ 'a' ~ (s | tojson | safe) }}{{ (s | safe) if n else 'x' }}",
}


@pytest.mark.parametrize("name", SCOPES)
def test_scopes_and_spaces(name: str) -> None:
    values = {"n": 3, "v": "given", "l": [1, 2], "s": "<é>"}
    assert render_chat(native_template(SCOPES[name]), [], **values) == python_chat(SCOPES[name], [], **values)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(EXPRESSIONS)
def test_expressions(expression: str) -> None:
    compare_expression(expression)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(EXPRESSIONS)
def test_many_expressions(expression: str) -> None:
    compare_expression(expression)


KNOWN_REFUSALS = (
    "which this library|which Python writes with its address"
    "|object is not subscriptable|slice indices must|unhashable type: 'slice'"
)
"""What differs on purpose, in words; and slices of constants, which jinja2 makes undefined when it compiles them."""


def compare_expression(expression: str) -> None:
    source = "{{ " + expression + " }}"
    with warnings.catch_warnings():  # jinja2 compiles what chance has made, such as `1 is 1` and `1[0]`
        warnings.simplefilter("ignore", SyntaxWarning)
        expected = outcome(python_chat, source, [], **VARIABLES)
    try:
        written = render_chat(native_template(source), [], **VARIABLES)
    except NativeError as error:
        assert expected is None or re.search(KNOWN_REFUSALS, str(error)), (expression, expected)
    else:
        assert written == expected, expression


def test_letter_case_and_properties_of_every_character() -> None:
    kinds = ["alpha", "decimal", "digit", "numeric", "alnum", "lower", "upper", "title", "space", "printable"]
    asked = "".join(f"{{{{ 1 if c.is{kind}() else 0 }}}}" for kind in kinds)
    native = native_template(
        "{% for c in text %}{{ c.upper() }},{{ c.lower() }},{{ c.title() }},{{ c.swapcase() }}"
        + asked
        + "\n{% endfor %}"
    )
    points = [
        chr(point) for point in range(sys.maxunicode + 1) if unicodedata.category(chr(point)) not in ("Cs", "Cn", "Co")
    ]
    for start in range(0, len(points), 5000):
        text = "".join(points[start : start + 5000])
        expected = "".join(
            ",".join([c.upper(), c.lower(), c.title(), c.swapcase()])
            + "".join(str(int(getattr(c, f"is{kind}")())) for kind in kinds)
            + "\n"
            for c in text
        )
        assert render_chat(native, [], text=text) == expected


# --- where templates and special tokens are found -------------------------------------------------------------------


@pytest.mark.parametrize("files", FILES.values(), ids=FILES.keys())
def test_files(files: dict[str, Any], tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    native, codec = NativeTokenizer(folder), opened(folder)
    for count, tools in itertools.product(range(1, len(CHAT) + 1), TOOLS):
        assert_same(native, codec, CHAT[:count], tools=tools)


def test_templates_by_name() -> None:
    native = native_template({"default": "D", "tool_use": "T"})
    assert render_chat(native, []) == "D" and render_chat(native, [], tools=[]) == "T"
    assert render_chat(native, [], chat_template="tool_use") == "T"
    with pytest.raises(NativeError, match="there is none called 'rag': name one of default, tool_use"):
        render_chat(native, [], chat_template="rag")
    with pytest.raises(NativeError, match="there is none: give a plain prompt"):
        render_chat(native_template({}), [])


@pytest.mark.parametrize("text", SPELLED)
def test_special_tokens_can_stay_text(text: str, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, chat_template=LLAMA4)
    native, codec = NativeTokenizer(folder), opened(folder)
    for chat in ([{"role": "user", "content": text}], [{"role": text, "content": [{"type": "text", "text": text}]}]):
        for as_text in (True, False):
            options = {"special_tokens_as_text": as_text, "tools": [{"name": text}]}
            assert encode_chat(native, chat, **options) == codec.encode_chat(chat, **options)
