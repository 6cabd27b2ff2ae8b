"""What every service answers to the real `openai` client; what is said is what the Python runtime says."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from near_ties import departures
from PIL import Image

from l4export import runtimes
from l4export.runtimes.engine import Engine
from l4export.runtimes.sampling.settings import Sampling
from services import CALL, WEATHER, Service
from workshop import ROOT

PROMPT = "And the LORD said unto"
TALK: list[Any] = [
    {"role": "system", "content": "Speak as a prophet."},
    {"role": "user", "content": "Who made the earth?"},
    {"role": "assistant", "content": "The LORD."},
    {"role": "user", "content": [{"type": "text", "text": "And the heaven?"}]},
]


def said(engine: Engine, ids: list[int], count: int, **options: Any) -> tuple[str, str]:
    """Text and OpenAI's reason."""
    generation = engine.generate(ids, count, **options)
    list(generation)
    return generation.text, "length" if str(generation.finish_reason).startswith("max") else "stop"


def encoded(engine: Engine, text: str) -> list[int]:
    assert engine.text is not None
    return engine.text.encode(text)


def test_models_and_health(service: Service) -> None:
    client = service.client()
    (model,) = client.models.list().data
    assert model.id == service.model == client.models.retrieve("kjv").id and model.object == "model"
    assert service.get("/health") == (200, '{"status": "ok"}')
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.models.retrieve("gpt")


def test_completions(service: Service, kjv: Engine) -> None:
    client, ids = service.client(), encoded(kjv, PROMPT)
    for prompt in (PROMPT, ids):
        answer = client.completions.create(model="kjv", prompt=prompt, max_tokens=20)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == said(kjv, ids, 20)
        assert answer.usage is not None and answer.object == "text_completion"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 20)
        assert answer.usage.total_tokens == len(ids) + 20
    texts = [PROMPT, "In the beginning"]
    both = client.completions.create(model="kjv", prompt=texts, max_tokens=9)
    assert [choice.text for choice in both.choices] == [said(kjv, encoded(kjv, text), 9)[0] for text in texts]
    assert [choice.index for choice in both.choices] == [0, 1]


def test_settings_and_seeds(service: Service, kjv: Engine) -> None:
    client, ids = service.client(), encoded(kjv, PROMPT)
    settings: dict[str, Any] = {"temperature": 0.9, "top_p": 0.8, "seed": 7}
    own: dict[str, Any] = {"top_k": 40, "min_p": 0.02, "repetition_penalty": 1.3}
    answer = client.completions.create(model="kjv", prompt=PROMPT, max_tokens=16, n=3, **settings, extra_body=own)
    expected = [said(kjv, ids, 16, sampling=Sampling(**{**settings, **own, "seed": 7 + n}))[0] for n in range(3)]
    assert [choice.text for choice in answer.choices] == expected and len(set(expected)) == 3


def test_stop_strings(service: Service, kjv: Engine) -> None:
    client, ids = service.client(), encoded(kjv, PROMPT)
    stop = said(kjv, ids, 40)[0][30:33]
    for given in (stop, ["never said", stop]):
        answer = client.completions.create(model="kjv", prompt=PROMPT, max_tokens=40, stop=given).choices[0]
        assert (answer.text, answer.finish_reason) == said(kjv, ids, 40, stop_strings=given)
        assert answer.finish_reason == "stop"


def test_chat(service: Service, kjv: Engine) -> None:
    client = service.client()
    ids, _ = kjv.prepare(TALK)
    for limit in ({"max_tokens": 25}, {"max_completion_tokens": 25}):
        answer = client.chat.completions.create(model="kjv", messages=TALK, **limit)
        (choice,) = answer.choices
        assert (choice.message.content, choice.finish_reason) == said(kjv, ids, 25)
        assert choice.message.role == "assistant" and choice.message.tool_calls is None
        assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)
    details = answer.usage.prompt_tokens_details
    assert details is not None and details.cached_tokens == len(ids) - 1, "it was asked before"
    assert answer.system_fingerprint == f"l4-{kjv.manifest.sha256[:12]}"


def test_special_tokens_that_a_user_spells_stay_text(service: Service, kjv: Engine) -> None:
    messages: list[Any] = [{"role": "user", "content": "<|end_of_text|><|begin_of_text|>"}]
    answer = service.client().chat.completions.create(model="kjv", messages=messages, max_tokens=8)
    ids, _ = kjv.prepare(messages, special_tokens_as_text=True)
    assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)
    assert answer.choices[0].message.content == said(kjv, ids, 8)[0]


def test_logprobs(service: Service, kjv: Engine) -> None:
    client, codec = service.client(), kjv.text
    assert codec is not None
    generation = kjv.generate(kjv.prepare(TALK)[0], 6, logprobs=3)
    list(generation)
    answer = client.chat.completions.create(model="kjv", messages=TALK, max_tokens=6, logprobs=True, top_logprobs=3)
    told = answer.choices[0].logprobs
    assert told is not None and told.content is not None and len(told.content) == 6
    for item, mine in zip(told.content, generation.row.logprobs, strict=True):
        assert item.token == codec.decode([mine.token]) and item.bytes == list(item.token.encode())
        assert item.logprob == pytest.approx(mine.logprob, abs=1e-4)
        assert [top.token for top in item.top_logprobs] == [codec.decode([token]) for token, _ in mine.top]
        assert [top.logprob for top in item.top_logprobs] == pytest.approx([p for _, p in mine.top], abs=1e-4)
    older = client.completions.create(model="kjv", prompt=PROMPT, max_tokens=6, logprobs=2).choices[0]
    assert older.logprobs is not None and older.logprobs.tokens is not None and older.logprobs.text_offset is not None
    assert "".join(older.logprobs.tokens) == older.text and older.logprobs.text_offset[0] == 0
    assert older.logprobs.top_logprobs is not None and {len(top) for top in older.logprobs.top_logprobs} == {2}
    plain = client.chat.completions.create(model="kjv", messages=TALK, max_tokens=1, logprobs=True)
    assert plain.choices[0].logprobs is not None and plain.choices[0].logprobs.content is not None
    assert plain.choices[0].logprobs.content[0].top_logprobs == []


def test_streams_say_what_whole_answers_say(service: Service) -> None:
    client = service.client()
    options: dict[str, Any] = {"model": "kjv", "max_tokens": 20, "n": 2, "temperature": 0.8, "seed": 3}
    whole = client.chat.completions.create(messages=TALK, **options)
    chunks = list(
        client.chat.completions.create(
            messages=TALK, stream=True, stream_options={"include_usage": True}, logprobs=True, **options
        )
    )
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and chunks[0].object == "chat.completion.chunk"
    for choice in whole.choices:
        mine = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(part.delta.content or "" for part in mine) == choice.message.content
        assert [part.finish_reason for part in mine if part.finish_reason] == [choice.finish_reason]
        assert sum(len(part.logprobs.content or []) for part in mine if part.logprobs) == 20
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    pieces = list(client.completions.create(prompt=PROMPT, stream=True, **options))
    texts = ["".join(part.text for piece in pieces for part in piece.choices if part.index == n) for n in range(2)]
    assert texts == [choice.text for choice in client.completions.create(prompt=PROMPT, **options).choices]
    assert all(piece.usage is None for piece in pieces)


def test_32_clients_at_once_are_answered_as_one_at_a_time(
    service: Service, kjv: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for near ties, which are counted."""
    prompts = [f"{PROMPT} {name}, Go unto the {number}" for number, name in enumerate(["Moses", "Aaron"] * 16)]

    def settings(number: int) -> dict[str, Any]:
        return {"temperature": 0.7, "seed": number} if number % 2 else {}

    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        options: dict[str, Any] = {"model": "kjv", "prompt": prompts[number], "max_tokens": 10 + number % 7}
        if number % 3:
            return (await client.completions.create(**options, **settings(number))).choices[0].text
        stream = await client.completions.create(**options, **settings(number), stream=True)
        return "".join([part.text async for chunk in stream for part in chunk.choices])

    async def everybody() -> list[str]:
        async with service.async_client() as client:
            return await asyncio.gather(*(ask(client, number) for number in range(32)))

    departed = 0
    for number, text in enumerate(asyncio.run(everybody())):
        ids, sampling = encoded(kjv, prompts[number]), Sampling(**settings(number))
        departed += departures(kjv, ids, 10 + number % 7, sampling, text) > 0
    if departed:
        with capsys.disabled():
            print(f"\n{departed} of 32 answers depart at a near tie")


def test_calls_of_tools(services: Callable[[str], Service]) -> None:
    client = services("calling").client()
    asked: dict[str, Any] = {"model": "calling", "messages": [{"role": "user", "content": "How is the weather?"}]}
    plain = client.chat.completions.create(**asked).choices[0]
    assert (plain.message.content, plain.message.tool_calls, plain.finish_reason) == (CALL, None, "stop")
    answer = client.chat.completions.create(**asked, tools=[WEATHER])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris", "days": 3}
    for refused in ({"tools": [WEATHER], "tool_choice": "none"}, {"tools": [_renamed("other")]}):
        choice = client.chat.completions.create(**asked, **refused).choices[0]
        assert (choice.message.content, choice.finish_reason) == (CALL, "stop")
    chunks = list(client.chat.completions.create(**asked, tools=[WEATHER], stream=True))
    parts = [part for chunk in chunks for part in chunk.choices]
    (streamed,) = [each for part in parts for each in part.delta.tool_calls or []]
    assert streamed.function is not None and streamed.index == 0 and streamed.id
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)
    assert not any(part.delta.content for part in parts) and parts[-1].finish_reason == "tool_calls"
    talk = [*asked["messages"], choice_message(call), {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}]
    later = client.chat.completions.create(model="calling", messages=talk, tools=[WEATHER])
    assert later.usage is not None and answer.usage is not None
    assert later.usage.prompt_tokens > answer.usage.prompt_tokens + 10, "the template has seen call and result"
    text = "".join(
        part.delta.content or "" for c in client.chat.completions.create(**asked, stream=True) for part in c.choices
    )
    assert text == CALL


def choice_message(call: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}


def _renamed(name: str) -> dict[str, Any]:
    return {**WEATHER, "function": {**WEATHER["function"], "name": name}}


def test_images(services: Callable[[str], Service], service: Service) -> None:
    client, lines = services("shapes").client(), (ROOT / "examples/shapes/pictures/questions.jsonl").read_text()
    for line in map(json.loads, lines.splitlines()[:3]):
        picture, question = line["messages"][0]["content"]
        data = base64.b64encode((ROOT / "examples/shapes/pictures" / picture["path"]).read_bytes()).decode()
        shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        messages: list[Any] = [{"role": "user", "content": [shown, question]}]
        answer = client.chat.completions.create(model="shapes", messages=messages)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (line["answer"], "stop")
    with pytest.raises(openai.BadRequestError, match="sees none"):
        service.client().chat.completions.create(model="kjv", messages=messages)
    for url in ("https://example.org/cat.png", "data:text/plain;base64,aGk=", "data:image/png;base64,aGk="):
        shown["image_url"] = {"url": url}
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="shapes", messages=messages)


def test_a_photo_is_seen_as_by_the_runtime(
    services: Callable[[str], Service], engine_paths: Callable[[str], Path]
) -> None:
    """A JPEG file that lies on its side: with other pixels, the log probabilities would be others."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.open(ROOT / "examples/shapes/pictures/15.png").convert("RGB").save(file, "JPEG", quality=80, exif=exif)
    data, text = base64.b64encode(file.getvalue()).decode(), {"type": "text", "text": "How many circles are there?"}
    engine = runtimes.load(engine_paths("shapes"), threads=1)
    ids, images = engine.prepare([{"role": "user", "content": [{"type": "image", "base64": data}, text]}])
    generation = engine.generate(ids, 4, logprobs=0, images=images)
    list(generation)
    shown = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
    messages: list[Any] = [{"role": "user", "content": [shown, text]}]
    answer = (
        services("shapes")
        .client()
        .chat.completions.create(model="shapes", messages=messages, max_tokens=4, logprobs=True)
    )
    assert answer.choices[0].message.content == generation.text
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content
    told = [item.logprob for item in answer.choices[0].logprobs.content]
    assert told == pytest.approx([item.logprob for item in generation.row.logprobs][: len(told)], abs=1e-4)


BAD: list[tuple[dict[str, Any], str | None]] = [
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 99}, "n"),
    ({"max_tokens": 0}, None),
    ({"max_tokens": 10**6}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"seed": 1.5}, "seed"),
    ({"logit_bias": {"1": 5}}, "logit_bias"),
    ({"presence_penalty": 1}, "presence_penalty"),
    ({"stop": [""]}, None),
    ({"stop": ["a"] * 65}, None),
    ({"stream": 7}, "stream"),
    ({"unheard_of": 1}, "unheard_of"),
]
DEEP = {"function": {"name": "a", "arguments": "[" * 100_000}}
BAD_CHATS: list[tuple[dict[str, Any], str | None]] = [
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "retrieval"}]}, "tools"),
    ({"top_logprobs": 3}, None),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, None),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, None),
    ({"messages": [{"role": "user", "content": 5}]}, None),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": 5}]}, None),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "a"}}]}]}, None),
    ({"messages": [{"role": "assistant", "tool_calls": [DEEP]}]}, None),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, None),
    ({"messages": [{"role": "user", "content": "long " * 2000}]}, "messages"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, None),
]
BAD_COMPLETIONS: list[tuple[dict[str, Any], str | None]] = [
    ({"prompt": []}, None),
    ({"prompt": [1, 2048]}, None),
    ({"prompt": [-1]}, None),
    ({"prompt": {"text": "Hi"}}, "prompt"),
    ({"prompt": "long " * 2000}, "prompt"),
    ({"echo": True}, "echo"),
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
]


def test_what_is_wrong_is_named(service: Service) -> None:
    chat: dict[str, Any] = {"model": "kjv", "messages": TALK}
    completion: dict[str, Any] = {"model": "kjv", "prompt": PROMPT}
    cases = [("chat/completions", {**chat, **change}, param) for change, param in BAD + BAD_CHATS]
    cases += [("completions", {**completion, **change}, param) for change, param in BAD + BAD_COMPLETIONS]
    for route, body, param in cases:
        status, told = service.post(f"/v1/{route}", json.dumps(body).encode())
        assert status == 400, body
        error = told["error"]
        assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
        assert error["message"] and "\n" not in error["message"] and "/" not in error["message"].split(";")[0], error
        assert param is None or error["param"] == param, error
    service.wait_until_idle()


def test_neutral_values_are_no_mistake(service: Service) -> None:
    neutral: dict[str, Any] = {
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "response_format": {"type": "text"},
        "tools": None,
        "tool_choice": None,
        "stop": None,
        "seed": None,
        "user": "somebody",
        "metadata": {"a": "b"},
        "store": False,
        "parallel_tool_calls": True,
        "stream_options": None,
    }
    body = {"model": "kjv", "messages": TALK, "max_tokens": 1, **neutral}
    status, told = service.post("/v1/chat/completions", json.dumps(body).encode())
    assert status == 200, told


def test_routes_and_models_that_are_not_there(service: Service) -> None:
    client = service.client()
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'") as caught:
        client.completions.create(model="gpt", prompt="Hi")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    for path, status, code in (("/v1/embeddings", 404, "not_found"), ("/v1/completions", 405, "method_not_allowed")):
        got, text = service.get(path)
        assert got == status and json.loads(text)["error"]["code"] == code
