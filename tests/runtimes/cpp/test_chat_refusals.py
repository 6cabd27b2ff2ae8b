"""Chat templates and chats that the native runtime refuses: by name, as Python does, and within limits."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from chat_cases import ENDLESS, GREEDY, HOSTILE
from tiny_tokenizers import templated
from transformers.models.llama4.processing_llama4 import chat_template

from l4export.errors import InputError
from native_chats import called, encode_chat, native_template, outcome, python_chat, render_chat
from native_library import NativeError, run

IMAGE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and this?"}]}

UNKNOWN = {
    "the tag 'block'": "{% block a %}{% endblock %}",
    "the tag 'include'": "{% if false %}{% include 'x' %}{% endif %}",
    "the filter 'urlize'": "{{ 'a' | trim | urlize }}",
    "the filter 'safe' where its result is not written at once": "{% set x = 'a' | safe %}",
    "the test 'escaped'": "{{ 'a' is escaped }}",
    "the function 'joiner'": "{% set j = joiner(', ') %}",
    "the method 'format'": "{{ '{}'.format(1) }}",
    "an integer beyond 64 bits": "{{ 99999999999999999999 }}",
    "a name with characters beyond ASCII": "{{ größe }}",
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_known_is_refused_by_name_when_it_is_opened(what: str) -> None:
    with pytest.raises(
        NativeError,
        match=rf"^chat template 'x': it uses {re.escape(what)}, which the native .*; use the Python runtime$",
    ):
        native_template({"default": "fine", "x": UNKNOWN[what]})


@pytest.mark.parametrize(
    "source",
    [
        "{% for x in %}",
        "{{ 'a",
        "{% shell 'ls' %}",
        "{{ 'a' | nosuch }}",
        "{% if %}",
        "{{ 1 is nosuch }}",
        "{% break %}",
    ],
)
def test_what_python_cannot_use_either_is_refused_when_it_is_used(source: str) -> None:
    native = native_template({"default": source, "other": "fine"})
    assert render_chat(native, [], chat_template="other") == "fine"
    with pytest.raises(NativeError, match=r"^chat template: .*; correct the messages or the template$"):
        render_chat(native, [])
    assert outcome(python_chat, source, []) is None


@pytest.mark.parametrize(
    "source", [*HOSTILE.values(), *ENDLESS.values(), *GREEDY.values()], ids=[*HOSTILE, *ENDLESS, *GREEDY]
)
def test_hostile_templates_end(source: str) -> None:
    start = time.perf_counter()
    with pytest.raises(NativeError, match=r"^chat template") as error:
        render_chat(native_template(source), [{"role": "user", "content": "x"}])
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert time.perf_counter() - start < 20


SLOW_SEARCHES = {
    "find": ".find(n)",
    "rfind": ".rfind(n)",
    "count": ".count(n)",
    "split": ".split(n) | length",
    "rsplit": ".rsplit(n) | length",
    "replace": ".replace(n, '') | length",
    "partition": ".partition(n) | length",
}


@pytest.mark.parametrize("name", SLOW_SEARCHES)
def test_a_search_takes_time_in_the_sum_of_the_lengths(name: str) -> None:
    """Half of what is looked for is found at two million places, which byte by byte takes minutes."""
    source = "{% set n = 'b' ~ 'a' * 2000000 if NAME[0] == 'r' else 'a' * 2000000 ~ 'b' %}{{ ('a' * 4000000)PART }}"
    start = time.perf_counter()
    render_chat(native_template(source.replace("NAME", repr(name)).replace("PART", SLOW_SEARCHES[name])), [])
    assert time.perf_counter() - start < 20


IN_LITTLE_MEMORY = """if True:
    import resource
    from native_chats import native_template, render_chat
    from native_library import NativeError, run
    render_chat(native_template("fine"), [])
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30),) * 2)
    for source in [
        "{{ strftime_now('a' * 300000000) | length }}",
        "{{ ('a' * 300000000)[::-1] | length }}",
        "{{ ('\\n' * 300000000).splitlines() | length }}",
        "{{ ('\\n' * 300000000) | indent | length }}",
    ]:
        try:
            print(render_chat(native_template(source), []))
        except NativeError as error:
            print(error)
"""


def test_what_a_run_takes_is_counted_before_it_is_taken() -> None:
    """With two gigabytes more than the process has; what is counted too late fails for want of memory."""
    path = os.pathsep.join(filter(None, sys.path))
    told = run(sys.executable, "-c", IN_LITTLE_MEMORY, PYTHONPATH=path).splitlines()
    assert told == ["chat template: it needs too much memory; correct the messages or the template"] * 4


def test_a_run_leaves_nothing_behind() -> None:
    """What a loop has been compared with goes, though it holds the loop itself."""
    native = native_template("{% set big = 'x' * 4000000 %}{% for i in [1] %}{{ loop.changed(loop, big) }}{% endfor %}")
    render_chat(native, [])
    before = _resident()
    for _ in range(100):
        render_chat(native, [])
    assert _resident() - before < 100_000_000


def _resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("form", ["{}", "{{{{ {} }}}}"])
@pytest.mark.parametrize("count", [300, 100_000])
def test_nesting_is_bounded(form: str, count: int) -> None:
    pieces = [
        "(",
        "[",
        "not ",
        "-",
        "1 + ",
        "1 ~ ",
        "x.a",
        "x|trim",
        "x if x else ",
        "{% if x %}",
        "{% for x in x %}",
        "{# #}",
        "f(",
        "{'a': ",
    ]
    for piece in pieces:
        assert "\n" not in str(outcome(lambda p=piece: render_chat(native_template(form.format(p * count + "x")), [])))


DEEP = {
    "lists": "{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
    "shared": (
        "{% set n = namespace(x='a') %}{% for i in range(90) %}{% set n.x = (n.x, n.x) %}{% endfor %}"
        "{{ n.x == n.x }}{{ {n.x: 1} }}"
    ),
    "itself": "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
    "macros": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_values_are_bounded(name: str) -> None:
    with pytest.raises(NativeError, match=r"^chat template: (it|values) "):
        render_chat(native_template(DEEP[name]), [])


def test_a_short_message_makes_no_long_prompt() -> None:
    source = "{% for i in range(5000) %}{{ 'a' * 1000 }}{% endfor %}{{ messages[0]['content'] }}"
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(InputError) as expected:
        templated(source).render_chat(messages)
    with pytest.raises(NativeError) as error:
        render_chat(native_template(source), messages)
    assert str(error.value) == str(expected.value)
    said = "b" * 600_000
    assert len(render_chat(native_template(source), [{"role": "user", "content": said}])) == 5_600_000


REASONS = {
    "{{ raise_exception('roles\n must   alternate') }}": [],
    "{{ x.y }}": [],
    "{{ messages[0].a.b }}": [{"role": "user", "content": "x"}],
    "{{ messages[3].a }}": [{"role": "user", "content": "x"}],
    "{{ 1 + 'a' }}{{ 2 }}": [],
    "{{ 'a' + 1 }}": [],
    "{{ messages | join + 1 }}": [],
    "{{ 1 // 0 }}": [],
    "{% for x in none %}{% endfor %}": [],
    "{{ none < 1 }}": [],
    "{% for a, b in [[1]] %}{% endfor %}": [],
    "{{ messages | length }}": [{"role": "user", "content": [{"type": "video"}]}],
    "{% for m in messages %}{{ m.content }}{% endfor %}": [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "x"}]}
    ],
}


@pytest.mark.parametrize("source", REASONS)
def test_reasons_are_those_of_python(source: str) -> None:
    expected, error = (outcome(_reason, render, source) for render in (_python, _native))
    assert error == expected


def _reason(render: Any, source: str) -> str:
    try:
        return str(render(source, REASONS[source]))
    except (InputError, NativeError) as error:
        return f"! {error}"


def _python(source: str, messages: Any) -> str:
    return templated(source).render_chat(messages)


def _native(source: str, messages: Any) -> str:
    return render_chat(native_template(source), messages)


DOCUMENTS = {
    b"": "not valid JSON",
    b"[]": "not a JSON object with messages",
    b"{}": '"messages" is no list',
    b'{"messages": [1]}': "messages: one is of type int: give mappings",
    b'{"messages": [], "messages": []}': "comes twice",
    b'{"messages": [], "n": 99999999999999999999}': "beyond 64 bits",
    b'{"messages": [], "chat_template": 1}': "neither null nor the name",
    b'{"messages": [], "x": "\xff"}': "UTF-8",
    b'{"messages": []} x': "not valid JSON",
}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_no_chat_is_refused(document: bytes) -> None:
    with pytest.raises(NativeError, match=re.escape(DOCUMENTS[document])):
        called("render_chat", native_template("x"), document, ctypes.c_char)


def test_images_are_not_lost() -> None:
    native = native_template(chat_template, bos_token="<|begin_of_text|>")
    with pytest.raises(NativeError, match=r"^messages: hold images"):
        encode_chat(native, [{"role": "user", "content": [{"type": "image", "path": "a.png"}]}])
    assert "<|image|>" in render_chat(native, [IMAGE])


def test_dates() -> None:
    source = "{{ strftime_now('%d %b %Y %A %B %j %% %z%Z|') }}"
    assert render_chat(native_template(source), []) == python_chat(source, [])
