"""Chat templates as transformers runs them, in jinja2's sandbox. It is imported in helper processes alone.

jinja2's sandbox keeps a template from private attributes and from changing what it is given. Its time and its memory
are bounded by the helper process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from l4export.errors import one_line
from l4export.runtimes.text.message_content import ContentForms

__all__ = ["answer"]


def answer(request: dict[str, Any], payload: bytes) -> Any:
    """Do what a helper process is asked: check a template, or render it.

    Args:
        request: Has `template`, its source; `special_tokens`, variables of it; and to render `messages`, `variables`,
            which prevail, and `longest`, the most characters to write.
        payload: Nothing.

    Returns:
        The prompt; or where there are no messages, the form of content with which a user's text is written (a value of
        `Form`).

    Raises:
        Exception: anything that goes wrong in the template.
    """
    try:
        template = _compiled(request["template"])
        forms = _forms(request["template"], json.dumps(request["special_tokens"]))
        if "messages" not in request:
            return forms.of("user")
        forms.check_parts(request["messages"])
        variables = request["special_tokens"] | request["variables"]
        return _write(template, request["longest"], messages=forms.adapt(request["messages"]), **variables)
    except TemplateError as error:
        raise ValueError(one_line(error, TemplateError)) from None


@lru_cache(maxsize=4)
def _compiled(source: str) -> Template:
    return _Sandbox().from_string(source)


@lru_cache(maxsize=4)
def _forms(source: str, special_tokens: str) -> ContentForms:
    """How a template wants its content; it is tried out, once."""
    template = _compiled(source)
    variables = {"tools": None, "documents": None, "add_generation_prompt": False, **json.loads(special_tokens)}

    def rendered(messages: Sequence[Any]) -> str | None:
        try:
            return template.render(messages=messages, **variables)
        except MemoryError:
            raise
        except Exception:  # a template can raise anything
            return None

    return ContentForms(rendered)


def _write(template: Template, longest: int, **variables: Any) -> str:
    pieces, size = [], 0
    for piece in template.generate(**variables):
        pieces.append(piece)
        size += len(piece)
        if size > longest:
            _refuse(f"it writes more than {longest} characters")
    return "".join(pieces)


class _Generation(Extension):
    """The tag `{% generation %}`, with which templates mark for training what the model says; it writes nothing."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment that Hugging Face chat templates are written for."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.filters["tojson"] = _to_json
        self.globals |= {"namespace": _PublicNamespace, "dict": _Dict(), "raise_exception": _refuse}
        self.globals["strftime_now"] = _now

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Stop the template, where jinja2 would go on with an undefined value."""
        _refuse(f"access to the attribute {attribute!r} of {type(obj).__name__} is unsafe")


def _refuse(message: Any) -> NoReturn:
    """Stop the template with a message; templates call it as `raise_exception`."""
    raise SecurityError(str(message))


class _PublicNamespace(Namespace):
    """What `namespace()` makes, without names that could deceive the sandbox, such as __class__."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may give an attribute `self`
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        _refuse(f"the name {name!r} of a namespace starts with an underscore")


class _Dict:
    """What templates call as `dict`: the type itself would show its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson`: plain JSON, where jinja2's own would escape characters for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
