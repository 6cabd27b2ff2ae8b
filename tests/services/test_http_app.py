"""The application of the Python service in this process: what no client can bring about from outside."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from l4export.runtimes.engine import Engine
from l4export.runtimes.serving import Batcher
from services import Service, running, wait_for
from workshop import ROOT

Asked = Callable[..., tuple[int, Any]]
PROMPT = {"model": "kjv", "prompt": "And", "max_tokens": 2}
CHAT = {"model": "kjv", "messages": [{"role": "user", "content": "Hi"}]}


async def ask(app: Any, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Status, and what is said as JSON, of one request to an ASGI application."""
    messages: list[dict[str, Any]] = []
    given = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not given:
            await asyncio.sleep(3600)  # the client stays
        return given.pop()

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "http_version": "1.1"}
    with suppress(ZeroDivisionError):  # told, and then raised for the log
        await app({**scope, "headers": [(b"content-type", b"application/json")]}, receive, send)
    return messages[0]["status"], json.loads(b"".join(message.get("body", b"") for message in messages))


@pytest.fixture
def batcher(kjv: Engine) -> Iterator[Batcher]:
    with Batcher(kjv, rows=2) as made:
        yield made


@pytest.fixture
def asked(kjv: Engine, batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """Asks the application: method, path, body."""
    there = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "examples/http_service")
    from app import Service, build_app

    app = build_app(Service(kjv, batcher, "kjv", 100, 10_000))
    yield lambda *arguments: asyncio.run(ask(app, *arguments))
    for name in sys.modules.keys() - there:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "examples/http_service")):
            del sys.modules[name]


def test_a_batcher_that_takes_no_requests(asked: Asked, batcher: Batcher) -> None:
    assert asked("POST", "/v1/completions", PROMPT)[0] == asked("GET", "/health")[0] == 200
    batcher.close()
    for body, path in ((PROMPT, "/v1/completions"), (CHAT, "/v1/chat/completions")):
        status, told = asked("POST", path, body)
        assert (status, told["error"]["code"]) == (503, "closing")
    assert asked("GET", "/health") == (503, {"status": "closing"})


def test_a_defect_is_told_as_openai_tells_it(asked: Asked, kjv: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kjv, "prepare", lambda *_, **__: 1 / 0)
    status, told = asked("POST", "/v1/chat/completions", CHAT)
    assert status == 500 and told["error"]["type"] == "server_error"
    assert "division" not in told["error"]["message"], "what happened inside is nobody's affair"


def test_a_second_interruption_waits_for_nothing(engine_paths: Callable[[str], Path]) -> None:
    with running("python", engine_paths("kjv"), "--grace", "600") as service:
        stream = service.client().completions.create(model="kjv", prompt="And", max_tokens=900, stream=True)
        next(iter(stream))
        service.process.send_signal(signal.SIGINT)
        wait_for(lambda: not listens(service))
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(20) == 0


def listens(service: Service) -> bool:
    try:
        return service.get("/health")[0] == 200
    except urllib.error.URLError:
        return False
