"""Chat templates of strangers: refused in one line, within limits of time, memory and size."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from chat_cases import ENDLESS, GREEDY, HOSTILE
from tiny_tokenizers import byte_level, templated

import l4export
from l4export.errors import EnvironmentLacks, InputError
from l4export.runtimes.text import chat_template
from l4export.runtimes.text.codec import TextCodec


def test_hostile_templates_are_refused_in_one_line() -> None:
    codec = TextCodec(byte_level(), HOSTILE)
    for name in HOSTILE:
        start = time.perf_counter()
        with pytest.raises(InputError, match=r"^chat template: .") as error:
            codec.render_chat([{"role": "user", "content": "x"}], chat_template=name)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500, name
        assert time.perf_counter() - start < 5, name


def test_endless_templates_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.3)
    codec = TextCodec(byte_level(), ENDLESS)
    for name in ENDLESS:
        with pytest.raises(InputError, match=r"template: it (takes more than 0\.3 seconds|needs too much memory)"):
            codec.render_chat([], chat_template=name)


def test_greedy_templates_are_stopped() -> None:
    codec = TextCodec(byte_level(), {**GREEDY, "default": "fine"})
    for name in GREEDY:
        with pytest.raises(InputError, match=r"^chat template: it needs (too much|more than 768 MiB of) memory"):
            codec.render_chat([{"role": "user", "content": "x"}], chat_template=name)
        assert codec.render_chat([]) == "fine"


def test_a_short_message_makes_no_long_prompt() -> None:
    """Ids of ten million characters would take two gigabytes of this process."""
    template = templated("{% for i in range(5000) %}{{ 'a' * 1000 }}{% endfor %}{{ messages[0]['content'] }}")
    with pytest.raises(InputError, match=r"it writes more than 10\d{5} characters"):
        template.render_chat([{"role": "user", "content": "x"}])
    said = "b" * 600_000
    assert len(template.render_chat([{"role": "user", "content": said}])) == 5_600_000


def test_sizes_of_templates_and_prompts_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "PROMPT_CHARACTERS", 1000)
    assert len(templated("{% for i in range(10) %}{{ 'a' * 100 }}{% endfor %}").render_chat([])) == 1000
    with pytest.raises(InputError, match="it writes more than 1000 characters"):
        templated("{% for i in range(11) %}{{ 'a' * 100 }}{% endfor %}").render_chat([])
    monkeypatch.setattr(chat_template, "TEMPLATE_CHARACTERS", 10)
    with pytest.raises(InputError, match="11 characters, at most 10"):
        templated("a" * 11).render_chat([])


def test_the_reason_a_template_gives_is_told() -> None:
    with pytest.raises(InputError, match=r"^chat template: roles must alternate; correct the messages"):
        templated(HOSTILE["raise"]).render_chat([])


def test_messages_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": "x"}]
    templated("{% set messages = messages + messages %}{{ messages | length }}").render_chat(messages)
    assert messages == [{"role": "user", "content": "x"}]


def test_a_process_that_crashes_is_an_error() -> None:
    codec = templated("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    helper = codec._templates._helper
    helper._give_back(helper._take())
    process = helper._idle[0]._process
    threading.Timer(0.3, process.kill).start()
    with pytest.raises(InputError, match=r"^chat template: it crashes, or it needs more than 768 MiB of memory; "):
        codec.render_chat([])
    assert helper._idle == []


def test_a_template_is_rendered_by_a_process_that_waits() -> None:
    """It is started once, and again when it has been lost."""
    codec = templated("{{ messages | length }}")
    assert codec.render_chat([]) == "0"
    idle = codec._templates._helper._idle
    process = idle[0]._process
    assert codec.render_chat([]) == "0" and idle[0]._process is process
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert codec.render_chat([]) == "0" and len(idle) == 1
    process = idle[0]._process
    del codec, idle
    assert process.wait(10) is not None  # it ends with its codec


def test_many_threads_render_at_once() -> None:
    codec = templated("{{ n }}")
    said: dict[int, list[str]] = {}
    threads = [
        threading.Thread(target=lambda n=n: said.update({n: [codec.render_chat([], n=n) for _ in range(20)]}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {n: [str(n)] * 20 for n in range(4)}
    assert len(codec._templates._helper._idle) == 1


def test_a_forked_process_has_a_helper_of_its_own() -> None:
    codec = templated("{{ n }}")
    assert codec.render_chat([], n=1) == "1"
    if (child := os.fork()) == 0:
        os._exit(0 if codec.render_chat([], n=2) == "2" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert codec.render_chat([], n=3) == "3"


def test_without_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = templated("x")
    kept = [str(Path(l4export.__file__).parents[1]), *(path for path in sys.path if "site-packages" not in path)]
    monkeypatch.setattr(sys, "path", kept)
    with pytest.raises(EnvironmentLacks, match=r"jinja2 is not installed: pip install 'l4export\[cpu\]'"):
        codec.render_chat([])


def test_without_a_python_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("", "/bin/false", "/no/such/python"):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(EnvironmentLacks, match="helper process"):
            templated("x").render_chat([])
