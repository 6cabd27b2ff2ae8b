"""What clients ask, in OpenAI's terms. A field that this service does not obey is refused, unless it says nothing."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from l4export.runtimes.sampling.settings import Sampling

Nothing = Literal[0] | None
Texts = Annotated[list[str], Field(fail_fast=True)]  # of mistakes one is enough: there may be millions
Ids = Annotated[list[Annotated[int, Field(strict=True)]], Field(fail_fast=True)]
Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


class Strict(BaseModel):
    """An object of which all fields are known."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, given: Any) -> Any:
        """Leave one of the fields that nobody knows, which is then refused: of mistakes one is enough."""
        unknown = [name for name in given if name not in cls.model_fields][:1] if isinstance(given, dict) else []
        return {name: given[name] for name in [*(given.keys() & cls.model_fields), *unknown]} if unknown else given


class StreamOptions(Strict):
    """What streams tell beside tokens; there is no obfuscation, so it may be refused and not asked for."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class TextFormat(Strict):
    """The only format that is not refused: text as it comes."""

    type: Literal["text"]


class Asked(Strict, ABC):
    """What both routes take. Numbers are checked by the runtime, which knows their ranges."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1)
    stop: str | Texts | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    logit_bias: dict[str, Any] | None = None
    presence_penalty: Nothing = None
    frequency_penalty: Nothing = None

    @field_validator("logit_bias")
    @classmethod
    def _no_bias(cls, bias: dict[str, Any] | None) -> dict[str, Any] | None:
        if any(value not in (0, None) for value in (bias or {}).values()):
            raise ValueError("this service does not have it")
        return bias

    def sampling(self, choice: int) -> Sampling:
        """Settings of a choice: a given seed is that of the first, and the next ones follow it."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return Sampling(**given, seed=None if self.seed is None else (self.seed + choice) % 2**64)

    def new_tokens(self) -> int | None:
        """The most new tokens, if that is said."""
        return self.max_tokens

    @abstractmethod
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are told with each; None: no log probabilities."""

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class Completion(Asked):
    """POST /v1/completions: prompts as they are."""

    prompt: str | Texts | Ids | Annotated[list[Ids], Field(fail_fast=True)]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None

    def prompts(self) -> list[str | list[int]]:
        """Each of them."""
        if isinstance(self.prompt, str) or not self.prompt or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

    def likeliest(self) -> int | None:
        """As the base has it."""
        return self.logprobs


class Chat(Asked):
    """POST /v1/chat/completions: a conversation."""

    messages: Objects = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Objects | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @model_validator(mode="after")
    def _agree(self) -> Chat:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @field_validator("tools")
    @classmethod
    def _functions(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for tool in tools or []:
            function = tool.get("function")
            if (
                tool.get("type") != "function"
                or not isinstance(function, dict)
                or not isinstance(function.get("name"), str)
            ):
                raise ValueError('a tool is {"type": "function", "function": {"name": ..., "parameters": ...}}')
        return tools

    def new_tokens(self) -> int | None:
        """Under either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def likeliest(self) -> int | None:
        """As the base has it."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def offered_tools(self) -> list[dict[str, Any]] | None:
        """Tools that the model may call."""
        return None if self.tool_choice == "none" else self.tools or None

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as chat templates want them.

        Raises:
            ValueError: what is no message.
        """
        return [_message(message, f"messages[{number}]") for number, message in enumerate(self.messages)]


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    roles = ("system", "developer", "user", "assistant", "tool")
    if message.get("role") not in roles:
        raise ValueError(f"{where}.role is not one of {', '.join(roles)}")
    content = message.get("content")
    if isinstance(content, list):
        content = [_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]
    elif content is None and message.get("tool_calls"):
        content = ""
    elif not isinstance(content, str):
        raise ValueError(f"{where}.content is neither text nor a list of parts")
    calls = message.get("tool_calls")
    if not isinstance(calls, list | None):
        raise ValueError(f"{where}.tool_calls is not a list")
    made = {**message, "content": content}
    if calls:
        made["tool_calls"] = [_call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls)]
    return made


def _part(part: Any, where: str) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            kind, separator, data = url.partition(";base64,")
            if not separator or not kind.startswith("data:image/"):
                raise ValueError(f"{where}: an image must be a data:image/...;base64 URL; others are not followed")
            return {"type": "image", "base64": data}
    raise ValueError(f"{where} is no part of type text or image_url")


def _call(call: Any, where: str) -> dict[str, Any]:
    """A call of the past: templates want its arguments as an object, and OpenAI's interface has them as JSON text."""
    match call:
        case {"function": {"name": str(name), "arguments": str(text)}}:
            try:
                arguments = json.loads(text or "{}")
            except (ValueError, RecursionError):
                raise ValueError(f"{where}.function.arguments is not JSON") from None
            return {**call, "function": {"name": name, "arguments": arguments}}
    raise ValueError(f"{where} has no function with a name and arguments")
