"""OpenAI's objects: what is told of answers, whole or in pieces."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from starlette.responses import Response

from l4export.runtimes.sampling.logprobs import TokenLogprobs
from l4export.runtimes.serving import Answer, Chosen
from l4export.runtimes.text.codec import TextCodec
from tool_calls import may_be_calls, parse_calls

REASONS = {"stop token": "stop", "stop string": "stop", "max_new_tokens": "length", "max_context": "length"}
"""OpenAI's names of why an answer ended."""


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in ASCII alone, so that nothing a client has sent can break it."""
    return Response(json.dumps(value), status, headers, media_type="application/json")


def error_object(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Why a request was refused or has failed."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage(answers: Sequence[Answer], prompts: int) -> dict[str, Any]:
    """Numbers of tokens; each of `prompts` prompts counts once, however many answers it has."""
    each = len(answers) // prompts
    read, chosen = sum(a.prompt_tokens for a in answers[::each]), sum(len(a.tokens) for a in answers)
    return {
        "prompt_tokens": read,
        "completion_tokens": chosen,
        "total_tokens": read + chosen,
        "prompt_tokens_details": {"cached_tokens": sum(a.reused_tokens for a in answers[::each])},
    }


class Teller:
    """The objects of one response: `chat.completion` or `text_completion`, or chunks of one.

    Args:
        codec: The engine's tokenizer.
        is_chat: Which of the two.
        model: As the client calls it.
        fingerprint: Of the engine.
        tools: Names of the tools that may be called.

    Attributes:
        is_chat: As it was given.
    """

    def __init__(
        self, codec: TextCodec, is_chat: bool, model: str, fingerprint: str, tools: Sequence[str] = ()
    ) -> None:
        self._codec = codec
        self.is_chat = is_chat
        self._tools = tools
        kind = "chat.completion" if is_chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._chunk_head = {**self._head, "object": f"{kind}.chunk" if is_chat else kind}

    def whole(self, answers: Sequence[Answer], prompts: int) -> dict[str, Any]:
        """Everything at once, when all answers have ended."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return {**self._head, "choices": choices, "usage": usage(answers, prompts)}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A piece of a stream."""
        return {**self._chunk_head, "choices": choices, **more}

    def piece(
        self, index: int, text: str, chosen: Sequence[Chosen] = (), offset: int = 0, reason: str | None = None
    ) -> dict[str, Any]:
        """A choice in a chunk: some text, and the tokens that it came with."""
        said: dict[str, Any] = {"delta": {"content": text} if text else {}} if self.is_chat else {"text": text}
        return {"index": index, **said, "logprobs": self._logprobs(chosen, offset), "finish_reason": reason}

    def begin(self, index: int) -> dict[str, Any]:
        """The choice that says who speaks."""
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def calls(self, text: str) -> list[dict[str, Any]] | None:
        """The calls of tools of which a whole text consists; None where it is text."""
        calls = parse_calls(text, self._tools) if self._tools else None
        return calls and [
            {
                "id": f"call_{secrets.token_hex(8)}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
            for name, arguments in calls
        ]

    def holds(self, text: str) -> bool:
        """Whether a text that begins so must be kept back, because it may become calls of tools."""
        return bool(self._tools) and may_be_calls(text)

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        text, reason = answer.text, REASONS[str(answer.finish_reason)]
        logprobs = self._logprobs(list(answer.chosen()), 0)
        if not self.is_chat:
            return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls := self.calls(text):
            message |= {"content": None, "tool_calls": calls}
            reason = "tool_calls"
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, chosen: Sequence[Chosen], offset: int) -> dict[str, Any] | None:
        """Of all tokens but a stop token; `offset` is where their text begins, in the older of the two forms."""
        told = [item for item in chosen if item.logprobs is not None and item.finish_reason != "stop token"]
        if not told:
            return None
        each = [item.logprobs for item in told if item.logprobs is not None]
        if self.is_chat:
            return {"content": [self._token_of(item) for item in each], "refusal": None}
        offsets = list(accumulate((len(item.text) for item in told[:-1]), initial=offset))
        return {
            "tokens": [self._text(item.token) for item in each],
            "token_logprobs": [_finite(item.logprob) for item in each],
            "top_logprobs": [{self._text(token): _finite(value) for token, value in item.top} for item in each],
            "text_offset": offsets,
        }

    def _token_of(self, item: TokenLogprobs) -> dict[str, Any]:
        top = [self._token(token, value) for token, value in item.top]
        return {**self._token(item.token, item.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        whole = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
        return {"token": text, "logprob": _finite(logprob), "bytes": whole}

    def _text(self, token: int) -> str:
        return self._codec.decode([token], skip_special_tokens=False)


def _finite(logprob: float) -> float:
    """JSON has no -inf; OpenAI's interface says -9999."""
    return max(logprob, -9999.0)
