"""Limits, and clients that do not behave: nothing of them is left behind, and others notice nothing."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import openai
import pytest

from services import Service, running, wait_for

LONG: dict[str, Any] = {"model": "kjv", "prompt": "And", "max_tokens": 900, "extra_body": {"repetition_penalty": 1.01}}


@pytest.fixture(scope="module")
def narrow(server: str, engine_paths: Callable[[str], Path]) -> Iterator[Service]:
    """One row, one more may wait, and small bodies; with a key."""
    options = ("--rows", "1", "--waiting", "1", "--max-body", "20000", "--max-tokens", "950", "--model", "kjv")
    with running(server, engine_paths("kjv"), *options, key="sesame") as service:
        yield service


AUTHORIZED = {"Authorization": "Bearer sesame"}


def idle(service: Service) -> bool:
    text = service.get("/metrics", **AUTHORIZED)[1]
    return "l4export_running_requests 0\n" in text and "l4export_waiting_requests 0\n" in text


def test_the_key(narrow: Service) -> None:
    for key in ("none", "sesam", "sesame2"):
        with pytest.raises(openai.AuthenticationError) as caught:
            narrow.client(key).models.list()
        assert caught.value.code == "invalid_api_key"
    assert narrow.client("sesame").models.list().data[0].id == "kjv"
    assert narrow.get("/health")[0] == 200, "which needs none"
    assert narrow.get("/metrics")[0] == 401 and narrow.get("/metrics", Authorization="Basic x")[0] == 401
    assert narrow.post("/v1/completions", b"{}")[0] == 401


def test_bodies_that_are_too_large(narrow: Service) -> None:
    body = json.dumps({"model": "kjv", "prompt": "a" * 30_000}).encode()
    status, told = narrow.post("/v1/completions", body, **AUTHORIZED)
    assert status == 413 and told["error"]["code"] == "body_too_large"
    address = urlparse(narrow.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    headers = {"Content-Type": "application/json", **AUTHORIZED}
    pieces = (body[at : at + 1000] for at in range(0, len(body), 1000))
    connection.request("POST", "/v1/completions", pieces, headers, encode_chunked=True)
    assert connection.getresponse().status == 413, "also where it does not say how large it is"
    connection.close()
    wait_for(lambda: idle(narrow))


def test_more_than_may_wait_are_refused(narrow: Service) -> None:
    client = narrow.client("sesame")
    streams = [client.completions.create(**LONG, stream=True)]
    next(iter(streams[0]))
    streams.append(client.completions.create(**LONG, stream=True))
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model="kjv", prompt="And", max_tokens=1)
    assert caught.value.code == "overloaded" and caught.value.response.headers["Retry-After"] == "1"
    for stream in streams:
        stream.close()
    wait_for(lambda: idle(narrow))
    assert client.completions.create(model="kjv", prompt="And", max_tokens=1).choices[0].text


def test_who_goes_is_not_answered_further(narrow: Service) -> None:
    """A stream that is closed, a request whose connection ends, one that waits, and one that is still being sent."""
    client = narrow.client("sesame")
    stream = client.completions.create(**LONG, stream=True)
    next(iter(stream))
    stream.close()
    wait_for(lambda: idle(narrow))
    body = json.dumps({**{k: v for k, v in LONG.items() if k != "extra_body"}}).encode()
    address = urlparse(narrow.url)
    sockets = []
    for sent in (len(body), len(body), len(body) // 2):
        connection = socket.create_connection((address.hostname, address.port))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: l4\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\nAuthorization: Bearer sesame\r\n\r\n"
        connection.sendall(head.encode() + body[:sent])
        sockets.append(connection)
        if sent == len(body):
            wait_for(lambda: not idle(narrow))
    began = time.monotonic()
    for connection in sockets:
        connection.close()
    wait_for(lambda: idle(narrow))
    assert time.monotonic() - began < 10
    assert 'requests_total{outcome="cancelled"}' in narrow.get("/metrics", **AUTHORIZED)[1]


MALFORMED = [
    b"GARBAGE\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: l4\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: l4\r\nContent-Length: 5\r\n\r\n{",
    b"GET /" + b"a" * 100_000,
    b"\x16\x03\x01\x02\x00\x01\x00",
]
BODIES = [b"", b"{", b"null", b"[]", b'"text"', b"{}", b'{"model": "kjv"}', b"\xff\xfe", b"[" * 10_000]
BODIES += [b'{"model": "kjv", "prompt": ' + value + b"}" for value in (b"1e999", b"null", b"[[]]", b"[1e3]", b"[true]")]


def test_malformed_requests(service: Service) -> None:
    for body in BODIES:
        for route in ("completions", "chat/completions"):
            status, told = service.post(f"/v1/{route}", body)
            assert status == 400 and told["error"]["type"] == "invalid_request_error", body
    address = urlparse(service.url)
    for data in MALFORMED:
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.settimeout(5)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert b" 200 " not in connection.recv(1000).split(b"\r\n")[0]
    service.wait_until_idle()
    assert service.get("/health")[0] == 200


MANY = 600_000
MISTAKES: list[tuple[dict[str, Any], str | None]] = [
    ({"prompt": [None] * MANY}, "prompt"),
    ({"prompt": [[None]] * MANY}, "prompt"),
    ({"messages": [None] * MANY}, None),
    ({"stop": [7] * MANY}, "stop"),
    ({"logit_bias": {str(number): 5 for number in range(MANY)}}, None),
    ({f"field {number}": 1 for number in range(MANY)}, None),
    ({"stream_options": {f"field {number}": 1 for number in range(MANY)}}, None),
    ({"y" * MANY: 1}, None),
]


def test_many_mistakes_cost_no_more_than_one(service: Service) -> None:
    """Of each body of some megabytes one mistake is told, in time, and without a copy for each of them."""
    before = service.resident_bytes()
    for body, param in MISTAKES:
        given = {"model": "kjv", **({} if "messages" in body else {"prompt": "Hi"}), **body}
        began = time.monotonic()
        route = "chat/completions" if "messages" in body else "completions"
        status, told = service.post(f"/v1/{route}", json.dumps(given).encode())
        assert status == 400 and len(told["error"]["message"]) < 300, told["error"]["message"][:300]
        assert param is None or told["error"]["param"] == param
        assert time.monotonic() - began < 20, "of which parsing JSON takes about one"
    assert service.resident_bytes() - before < 512 << 20, "the values themselves take 100 to 200 MB"


def test_answers_end_before_the_service_does(server: str, engine_paths: Callable[[str], Path]) -> None:
    with running(server, engine_paths("kjv"), "--rows", "2") as service:
        stream = iter(service.client().completions.create(**{**LONG, "max_tokens": 150}, stream=True))
        next(stream)
        service.process.send_signal(signal.SIGTERM)
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "length"
        assert service.process.wait(20) == 0


def test_answers_that_take_too_long_to_end_are_cancelled(server: str, engine_paths: Callable[[str], Path]) -> None:
    with running(server, engine_paths("kjv"), "--rows", "2", "--grace", "0") as service:
        stream = iter(service.client().completions.create(**LONG, stream=True))
        next(stream)
        with ThreadPoolExecutor() as threads:
            whole = threads.submit(service.client().completions.create, **LONG)
            wait_for(lambda: service.metrics()["l4export_running_requests"] == 2)
            service.process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIError) as caught:
                list(stream)
            assert caught.value.code == "closing"
            error = whole.exception(20)
            assert isinstance(error, openai.InternalServerError)
            assert (error.status_code, error.code) == (503, "closing")
        assert service.process.wait(20) == 0


def test_engines_that_cannot_be_served_are_refused(server: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError), running(server, tmp_path / "nothing"):
        pass


def unruly(service: Service, number: int, chance: random.Random) -> Any:
    """What a client does: most behave."""
    body: dict[str, Any] = {"model": "kjv", "prompt": f"And {chance.random()} it came", "max_tokens": 2}
    match number % 10:
        case 0:
            return body | {"temperature": -1}
        case 1:
            return body | {"prompt": [5000]}
        case 2:
            return body | {"stream": True, "max_tokens": 200}
        case 3:
            return body | {"max_tokens": 300}
        case 4:
            return {"model": "kjv", "messages": [{"role": "user", "content": body["prompt"]}], "max_tokens": 2}
    return body


@pytest.mark.slow
def test_memory_is_flat_over_10000_requests(server: str, engine_paths: Callable[[str], Path]) -> None:
    """Of every ten, two are refused, two are left by their clients, and one is a chat."""
    chance = random.Random(0)

    async def some(service: Service, count: int) -> None:
        turn = asyncio.Semaphore(16)
        async with service.async_client() as client:

            async def one(number: int) -> None:
                body = unruly(service, number, chance)
                create: Any = client.chat.completions.create if "messages" in body else client.completions.create
                async with turn:
                    try:
                        if number % 10 in (2, 3):
                            async with asyncio.timeout(0.05):
                                answer = await create(**body)
                                if body.get("stream"):
                                    await anext(aiter(answer))
                                    await answer.close()
                        else:
                            await create(**body)
                    except (openai.BadRequestError, TimeoutError):
                        pass

            await asyncio.gather(*map(one, range(count)))

    with running(server, engine_paths("kjv"), "--capacity", "512") as service:
        sizes = []
        for _ in range(5):
            asyncio.run(some(service, 2000))
            service.wait_until_idle()
            sizes.append(service.resident_bytes())
        print(f"resident after each 2000 requests: {[size >> 20 for size in sizes]} MiB")
        assert sizes[-1] - sizes[1] < 16 << 20
        assert service.process.poll() is None
