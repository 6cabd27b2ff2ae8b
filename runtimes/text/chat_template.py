"""Chat templates: programs that come with a checkpoint. They run in a helper process, with limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from l4export.errors import InputError
from l4export.runtimes.text.helper_process import HelperFailed, HelperProcess

if TYPE_CHECKING:
    from l4export.runtimes.text.message_content import Form

__all__ = ["ChatTemplates", "plain_value"]

TEMPLATE_CHARACTERS = 1 << 20
"""Longest chat template that is compiled; Llama 4's has 5 thousand characters."""

PROMPT_CHARACTERS = 64 << 20
"""Longest text that a chat template may produce of any messages."""

_OWN_CHARACTERS = 1 << 20
_TIMES = 8
"""A template may write so many characters of its own, and each that it is given so often: JSON's escapes take six. Ids
of a text take two hundred times its bytes while it is encoded, so a short message must not become a long prompt."""

RENDER_SECONDS = 10.0
"""Time that a chat template may take; Llama 4's takes milliseconds."""

MEMORY_BYTES = 768 << 20
"""Address space of the process that runs templates, with Python's own 30 MiB."""

DEFAULT = "default"
WITH_TOOLS = "tool_use"


class ChatTemplates:
    """The chat templates of one tokenizer, by name.

    Args:
        sources: Their texts. "default" is used where no other is named, "tool_use" where there are tools.
        special_tokens: What they see as `bos_token`, `eos_token` and so on.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self.sources, self.special_tokens = dict(sources), dict(special_tokens)

    def choose(self, name: str | None, tools: object) -> str:
        """Return the source that transformers would take: the named one, that for tools, or the default.

        Raises:
            InputError: there is no such template.
        """
        if name is None:
            name = WITH_TOOLS if tools is not None and WITH_TOOLS in self.sources else DEFAULT
        if name in self.sources:
            return self.sources[name]
        if not self.sources:
            raise InputError("chat template: there is none: give a plain prompt, or add a chat_template.jinja")
        names = ", ".join(sorted(self.sources))
        raise InputError(f"chat template: there is none called {name!r}: name one of {names}, or give a plain prompt")

    def render(self, source: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """Run a template and return what it writes.

        Contents of messages are given to it in the form that it knows: text, or a list of parts.

        Args:
            source: The template.
            messages: With "role" and "content"; keys whose value is None are left out, as in transformers.
            variables: What it sees beside `messages` and the special tokens; they prevail over the latter.

        Raises:
            InputError: anything that goes wrong in it, a limit that it exceeds, or values that JSON cannot say.
            EnvironmentLacks: the package jinja2 is missing.
        """
        request: dict[str, Any] = {
            "messages": [_message(plain_value(message, "messages")) for message in messages],
            "variables": {name: plain_value(value, name) for name, value in variables.items()},
        }
        given = len(json.dumps(request, ensure_ascii=False))
        request["longest"] = min(PROMPT_CHARACTERS, _OWN_CHARACTERS + _TIMES * given)
        prompt = self._ask(source, request, "correct the messages or the template")
        if not isinstance(prompt, str):
            raise InputError("chat template: it makes no text; correct the template")
        return prompt

    def content_form(self, source: str) -> Form:
        """Parse a template and tell which contents of a user's message it writes.

        Raises:
            InputError: it cannot be parsed, or exceeds a limit.
            EnvironmentLacks: the package jinja2 is missing.
        """
        form: Form = self._ask(source, {}, "correct the template")
        return form

    def _ask(self, source: str, request: Mapping[str, Any], remedy: str) -> Any:
        if len(source) > TEMPLATE_CHARACTERS:
            size = f"{len(source)} characters, at most {TEMPLATE_CHARACTERS} are run"
            raise InputError(f"chat template: {size}: shorten it")
        try:
            everything = {"template": source, "special_tokens": self.special_tokens, **request}
            return self._helper.ask(everything, RENDER_SECONDS)
        except HelperFailed as error:
            raise InputError(f"chat template: {error}; {remedy}") from None

    @cached_property
    def _helper(self) -> HelperProcess:
        return HelperProcess("template", MEMORY_BYTES, 8 * PROMPT_CHARACTERS)  # JSON's escapes take six for one


def plain_value(value: Any, what: str) -> Any:
    """A value as JSON can say it: numbers, text, None, lists and mappings of these; tuples become lists.

    Args:
        value: What a template is to see.
        what: Its name in messages.

    Raises:
        InputError: it holds anything else, such as a function or an array, or is nested too deeply.
    """
    try:
        return _plain(value, what)
    except RecursionError:
        raise InputError(f"{what}: nested too deeply, or within itself: give plain JSON values") from None


def _plain(value: Any, what: str) -> Any:
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value) if kind is not str else str.__str__(value)
    if value is None:
        return None
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise InputError(f"{what}: a key is of type {type(odd[0]).__name__}: give mappings with keys of text")
        return {str.__str__(key): _plain(item, what) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, what) for item in value]
    raise InputError(f"{what}: a value is of type {type(value).__name__}: give plain JSON values")


def _message(message: Any) -> dict[str, Any]:
    """A message as transformers gives it to a template: without empty keys, and with reasoning under all its names."""
    if not isinstance(message, dict):
        raise InputError(f"messages: one is of type {type(message).__name__}: give mappings with role and content")
    message = {key: value for key, value in message.items() if value is not None}
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
