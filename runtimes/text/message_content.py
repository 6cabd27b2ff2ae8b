"""The content of a message, text or a list of parts, in the form that a chat template can read.

Messages may have either form: "content": "Hi", or "content": [{"type": "text", "text": "Hi"}]. Many templates know one
of them alone. Given the other one, they lose the text, print the list as Python does, or raise. Which forms a template
knows is tried out on a short conversation, as llama.cpp does, because what a template says about it is a program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

__all__ = ["ContentForms", "Form"]

Form = Literal["either", "text", "parts", "neither"]
"""The forms that a template knows for the messages of a role; "neither": it writes the text of none."""

_NEEDLE = "l4export"
_PRINTED = "'type': 'text'"


class ContentForms:
    """The forms of content that one template knows, found out as they are needed.

    Args:
        rendered: Renders the template with some messages; None where the template raises.
    """

    def __init__(self, rendered: Callable[[Sequence[Any]], str | None]) -> None:
        self._rendered = rendered
        self._known: dict[str, Form] = {}
        self._drops: dict[tuple[str, str], bool] = {}

    def of(self, role: str) -> Form:
        """The forms for messages of a role."""
        if role not in self._known:
            self._known[role] = self._try(role)
        return self._known[role]

    def adapt(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Messages with contents that the template can read; those that it can read stay as they are."""
        return [
            {**message, "content": self._adapted(message["content"], str(message.get("role")))}
            if "content" in message
            else message
            for message in messages
        ]

    def check_parts(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Refuse parts, such as videos, that the template would leave out without a word.

        Raises:
            ValueError: there is one.
        """
        for message in messages:
            content, role = message.get("content"), str(message.get("role"))
            for part in content if isinstance(content, list) else []:
                if (
                    isinstance(part, dict)
                    and (kind := str(part.get("type"))) != "text"
                    and self._leaves_out(role, part)
                ):
                    raise ValueError(f"it leaves out parts of type {kind[:40]!r} in a message of {role[:40]!r}")

    def _leaves_out(self, role: str, part: dict[str, Any]) -> bool:
        """Whether it writes the same without such a part; the first of its type tells for all."""
        kind = role, str(part.get("type"))
        if kind not in self._drops:
            text = _parts(_NEEDLE)
            without, written = (
                self._rendered(self._conversation({"role": role, "content": content}))
                for content in (text, [*text, part])
            )
            self._drops[kind] = written is not None and written == without
        return self._drops[kind]

    def _adapted(self, content: Any, role: str) -> Any:
        form = self.of(role)
        if form == "parts" and isinstance(content, str):
            return _parts(content)
        if form == "text" and isinstance(content, list) and content and all(map(_is_text, content)):
            return "\n".join(part["text"] for part in content)
        return content

    def _try(self, role: str) -> Form:
        if role != "user" and self.of("user") in ("either", "neither"):
            return "either"  # as most templates, or it cannot be found out
        text, parts = (self._writes(role, content) for content in (_NEEDLE, _parts(_NEEDLE)))
        if text or parts:
            return "either" if text and parts else "text" if text else "parts"
        return "neither" if role == "user" else self.of("user")

    def _writes(self, role: str, content: Any) -> bool:
        written = self._rendered(self._conversation({"role": role, "content": content}))
        return written is not None and _NEEDLE in written.lower() and _PRINTED not in written.lower()

    def _conversation(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """The shortest conversation that has such a message."""
        if message["role"] == "user":
            return [message]
        question = {"role": "user", "content": _parts("?") if self.of("user") == "parts" else "?"}
        return [message, question] if message["role"] in ("system", "developer") else [question, message]


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
