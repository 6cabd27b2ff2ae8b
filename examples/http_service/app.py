"""The routes, in OpenAI's interface."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from asked import Asked, Chat, Completion
from gate import Gate
from l4export.errors import InputError, L4Error
from l4export.runtimes.engine import Engine
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.serving import Answer, Batcher, Closed, Overloaded
from l4export.runtimes.text.codec import TextCodec
from prometheus import exposition
from streams import EventStream
from told import Teller, error_object, json_response

Prompt = tuple[list[int], ProcessedImages | None]


@dataclass(frozen=True)
class Service:
    """What all routes share.

    Attributes:
        engine: The model; it has a tokenizer.
        batcher: Answers requests.
        model: What clients call it.
        most_tokens: New tokens that a request may ask for.
        most_bytes: Of a request's body.
        api_key: That clients must give; None: none.
    """

    engine: Engine
    batcher: Batcher
    model: str
    most_tokens: int
    most_bytes: int
    api_key: str | None = None

    @property
    def codec(self) -> TextCodec:
        """The engine's tokenizer."""
        assert self.engine.text is not None
        return self.engine.text

    async def answer(
        self, request: Request, asked: Asked, prompts: Sequence[Prompt], is_chat: bool, tools: Sequence[str] = ()
    ) -> Response:
        """Submit `n` answers to each prompt, and tell them whole or as they come."""
        fingerprint = f"l4-{self.engine.manifest.sha256[:12]}"
        teller = Teller(self.codec, is_chat, asked.model, fingerprint, tools)
        answers = self._submit(asked, prompts)
        if asked.stream:
            return EventStream(teller, answers, len(prompts), asked.tells_usage)
        gone = asyncio.create_task(_disconnect(request))
        done = asyncio.create_task(_all_ended(answers))
        try:
            await asyncio.wait([gone, done], return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                done.result()
        except L4Error as error:  # of an answer, and not of what was asked
            return json_response(error_object(str(error), "server_error"), 500)
        finally:
            gone.cancel()
            done.cancel()
            for answer in answers:
                answer.cancel()
        if not all(answer.finish_reason != "cancelled" and answer.has_ended for answer in answers):
            return _closing()  # which nobody reads where the client has gone
        return json_response(teller.whole(answers, len(prompts)))

    def _submit(self, asked: Asked, prompts: Sequence[Prompt]) -> list[Answer]:
        """All answers, or none and an error."""
        if len(prompts) * asked.n > self.batcher.rows:
            raise InputError(f"n: {len(prompts) * asked.n} answers are asked for, and {self.batcher.rows} is the most")
        wanted = asked.new_tokens()
        if wanted is not None and wanted > self.most_tokens:
            raise InputError(f"max_tokens is {wanted}: this service gives at most {self.most_tokens}")
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        answers: list[Answer] = []
        try:
            for ids, images in prompts:
                if len(ids) > self.batcher.capacity:
                    name, most = "messages" if isinstance(asked, Chat) else "prompt", self.batcher.capacity
                    raise InputError(f"{name}: make {len(ids)} tokens, and there is room for {most}")
                room = max(1, min(self.most_tokens, self.batcher.capacity - len(ids) + 1))
                for choice in range(asked.n):
                    answers.append(
                        self.batcher.submit(
                            ids,
                            max_new_tokens=room if wanted is None else wanted,
                            sampling=asked.sampling(choice),
                            stop_strings=stops,
                            logprobs=asked.likeliest(),
                            images=images,
                        )
                    )
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise
        return answers


def build_app(service: Service) -> FastAPI:
    """The application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, api_key=service.api_key, most_bytes=service.most_bytes)
    model = {"id": service.model, "object": "model", "created": int(time.time()), "owned_by": "l4export"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request, asked: Chat) -> Response:
        _check_model(service, asked)
        prompt = await asyncio.to_thread(_prepare, service, asked)
        tools = [tool["function"]["name"] for tool in asked.offered_tools() or []]
        return await service.answer(request, asked, [prompt], True, tools)

    @app.post("/v1/completions")
    async def completions(request: Request, asked: Completion) -> Response:
        _check_model(service, asked)
        texts = asked.prompts()
        if len(texts) > service.batcher.rows:
            raise InputError(f"prompt: has {len(texts)} prompts, and {service.batcher.rows} is the most")
        prompts = [(await asyncio.to_thread(_encode, service, text), None) for text in texts]
        return await service.answer(request, asked, prompts, False)

    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [model]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        return json_response(model) if name == service.model else _no_model(name)

    @app.get("/health")
    async def health() -> Response:
        is_open = service.batcher.is_open
        return json_response({"status": "ok" if is_open else "closing"}, 200 if is_open else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(exposition(service.batcher.metrics()), media_type="text/plain; version=0.0.4")

    _handle_errors(app)
    return app


def _prepare(service: Service, asked: Chat) -> Prompt:
    """The ids of a conversation, and its images."""
    try:
        messages = asked.conversation()
    except ValueError as error:
        raise InputError(str(error)) from None
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    if service.engine.features is None and any(part["type"] == "image" for part in parts):
        raise InputError("messages: have images, and this model sees none")
    if not service.codec.has_chat_template:
        raise InputError("this model has no chat template: use /v1/completions")
    variables = {"tools": tools} if (tools := asked.offered_tools()) else {}
    return service.engine.prepare(messages, special_tokens_as_text=True, **variables)


def _encode(service: Service, prompt: str | list[int]) -> list[int]:
    return service.codec.encode(prompt) if isinstance(prompt, str) else prompt


async def _all_ended(answers: Sequence[Answer]) -> None:
    """Return when every answer has ended. Raises `L4Error` for one that has failed."""
    for answer in answers:
        await answer


async def _disconnect(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _NoModelError(Exception):
    """Another model than the one that is served."""


def _check_model(service: Service, asked: Asked) -> None:
    if asked.model != service.model:
        raise _NoModelError(asked.model)


def _no_model(name: str) -> Response:
    told = error_object(f"there is no model {name[:80]!r} here", "invalid_request_error", "model", "model_not_found")
    return json_response(told, 404)


def _closing() -> Response:
    return json_response(error_object("the service is closing", "server_error", code="closing"), 503)


def _handle_errors(app: FastAPI) -> None:
    """OpenAI's error objects, whatever goes wrong."""

    @app.exception_handler(_NoModelError)
    async def no_model(_: Request, error: _NoModelError) -> Response:
        return _no_model(str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            told = error_object("the body is not JSON", "invalid_request_error", code="invalid_json")
            return json_response(told, 400)
        where = ".".join(map(str, first["loc"][1:]))[:60] or None
        message = "this service does not have it" if first["type"] == "extra_forbidden" else first["msg"]
        message = message.removeprefix("Value error, ")
        told = error_object(f"{where or 'the body'}: {message}", "invalid_request_error", where and where.split(".")[0])
        return json_response(told, 400)

    @app.exception_handler(Overloaded)
    async def overloaded(_: Request, error: Overloaded) -> Response:
        told = error_object(str(error), "rate_limit_error", code="overloaded")
        return json_response(told, 429, {"Retry-After": "1"})

    @app.exception_handler(Closed)
    async def closed(_: Request, __: Closed) -> Response:
        return _closing()

    @app.exception_handler(L4Error)
    async def refused(_: Request, error: L4Error) -> Response:
        param = str(error).split(":")[0].split(" ")[0]
        known = param if param in Chat.model_fields | Completion.model_fields else None
        return json_response(error_object(str(error), "invalid_request_error", known), 400)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
        told = error_object(str(error.detail), "invalid_request_error", code=codes.get(error.status_code))
        return json_response(told, error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def defect(_: Request, __: Exception) -> Response:
        return json_response(error_object("the service has a defect; its log says more", "server_error"), 500)
