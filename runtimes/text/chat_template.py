"""Chat templates: programs that come with a checkpoint, run in a sandbox of jinja2 with limits of size and time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from l4export.errors import EnvironmentLacks, InputError, one_line

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["render_template"]

TEMPLATE_CHARACTERS = 1 << 20
"""Longest chat template that is compiled; Llama 4's has 5 thousand characters."""

PROMPT_CHARACTERS = 64 << 20
"""Longest text that a chat template may produce, and longest sequence that it may make by multiplying."""

RENDER_SECONDS = 10.0
"""Processor time that a chat template may take; Llama 4's takes milliseconds."""


def render_template(source: str, variables: Mapping[str, Any]) -> str:
    """Run an untrusted template within its limits of size and time; return what it writes.

    Raises:
        InputError: anything that goes wrong in it, or a limit that it exceeds.
        EnvironmentLacks: the package jinja2 is missing.
    """
    if len(source) > TEMPLATE_CHARACTERS:
        raise InputError(f"chat template: {len(source)} characters, at most {TEMPLATE_CHARACTERS} are run: shorten it")
    environment = _sandbox()
    from jinja2 import TemplateError, nodes

    try:
        tree = environment.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "timed", [], [], None, None).set_environment(environment)
        pieces, size = [], 0
        for piece in environment.from_string(tree).generate(variables):
            pieces.append(piece)
            size += len(piece)
            if size > PROMPT_CHARACTERS:
                _refuse(f"it writes more than {PROMPT_CHARACTERS} characters")
        return "".join(pieces)
    except Exception as error:  # a template can raise anything: its own errors, TypeError, RecursionError, MemoryError
        reason = one_line(error, TemplateError)
        raise InputError(f"chat template: {reason}; correct the messages or chat_template.jinja") from None


def _sandbox() -> ImmutableSandboxedEnvironment:
    """A jinja2 environment with what Hugging Face templates expect of theirs, without files, and with a time limit.

    The sandbox of jinja2 refuses private attributes, changes to the arguments and ranges above 100000 items. This one
    also looks at the processor time at each call and each turn of a loop (the filter `timed`, which `render_template`
    puts around what loops go through), and refuses huge products and powers. A template can still use up memory,
    for instance by doubling a string forty times: where templates come from strangers, limit the process as well.
    """
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise EnvironmentLacks("the package jinja2 is not installed: pip install 'l4export[cpu]'") from None
    from jinja2.runtime import Context, Undefined
    from jinja2.utils import Namespace, pass_context

    deadline = time.thread_time() + RENDER_SECONDS

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            if _is_huge(operator, left, right):
                _refuse(f"the result of {operator} is too large")
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            check_time()
            return super().call(__context, __obj, *args, **kwargs)

        def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
            _refuse(f"access to the attribute {attribute!r} of {type(obj).__name__} is unsafe")

    class PublicNamespace(Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):  # a false __class__ could deceive the sandbox
                _refuse(f"the name {name!r} of a namespace starts with an underscore")
            super().__setitem__(name, value)

    def new_dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return dict(*args, **kwargs)  # a function: the type itself would show its attributes

    def namespace(*args: Any, **kwargs: Any) -> PublicNamespace:
        made = PublicNamespace()
        for name, value in dict(*args, **kwargs).items():
            made[name] = value
        return made

    def check_time() -> None:
        if time.thread_time() > deadline:
            _refuse(f"it takes more than {RENDER_SECONDS:g} seconds")

    @pass_context  # which also keeps it from being evaluated at compile time
    def timed(_: Any, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            check_time()
            yield item

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters |= {"tojson": _to_json, "timed": timed}
    environment.globals |= {"namespace": namespace, "dict": new_dict}
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment


def _is_huge(operator: str, left: Any, right: Any) -> bool:
    """Whether a product or power of integers has more than 4096 bits, or a repeated sequence too many items."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        return bits > 4096
    pairs = [(left, right), (right, left)]
    return any(
        isinstance(items, (str, list, tuple)) and isinstance(count, int) and len(items) * count > PROMPT_CHARACTERS
        for items, count in pairs
    )


def _refuse(message: str) -> NoReturn:
    """Stop the template with a message; templates call it as `raise_exception`."""
    from jinja2.exceptions import SecurityError

    raise SecurityError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson`: plain JSON, where jinja2's own would escape characters for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
