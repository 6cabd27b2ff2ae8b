"""The sandbox of chat templates: jinja2's own with limits of time and size, and what Hugging Face templates expect.

It needs jinja2, so it is imported where a template is run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

__all__ = ["TemplateSandbox", "refuse"]


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """A jinja2 environment for one untrusted template, without files.

    The sandbox of jinja2 refuses private attributes, changes to the arguments and ranges above 100000 items. This one
    also looks at the processor time at each call and each turn of a loop, and refuses huge products and powers. A
    template can still use up memory, for instance by doubling a string forty times: where templates come from
    strangers, limit the process as well.

    Args:
        seconds: Processor time of this thread that the template may take, from now on.
        longest: The most items of a sequence that is made by multiplying.
    """

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, seconds: float, longest: int) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self._seconds, self._deadline, self._longest = seconds, time.thread_time() + seconds, longest
        self.filters |= {"tojson": _to_json, "timed": self._timed}
        self.globals |= {"namespace": _namespace, "dict": _dict, "raise_exception": refuse, "strftime_now": _now}

    def compiled(self, source: str) -> Template:
        """The template, with the filter `timed` around what its loops go through."""
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "timed", [], [], None, None).set_environment(self)
        return self.from_string(tree)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """A product or a power, unless it is huge."""
        if _is_huge(operator, left, right, self._longest):
            refuse(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call, while there is time."""
        __self._check_time()
        return super().call(__context, __obj, *args, **kwargs)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Stop the template, where jinja2 would go on with an undefined value."""
        refuse(f"access to the attribute {attribute!r} of {type(obj).__name__} is unsafe")

    @pass_context  # which also keeps it from being evaluated at compile time
    def _timed(self, _: Any, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._check_time()
            yield item

    def _check_time(self) -> None:
        if time.thread_time() > self._deadline:
            refuse(f"it takes more than {self._seconds:g} seconds")


def refuse(message: str) -> NoReturn:
    """Stop the template with a message; templates call it as `raise_exception`."""
    raise SecurityError(str(message))


def _is_huge(operator: str, left: Any, right: Any, longest: int) -> bool:
    """Whether a product or power of integers has more than 4096 bits, or a repeated sequence too many items."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        return bits > 4096
    pairs = [(left, right), (right, left)]
    return any(
        isinstance(items, (str, list, tuple)) and isinstance(count, int) and len(items) * count > longest
        for items, count in pairs
    )


class _PublicNamespace(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):  # a false __class__ could deceive the sandbox
            refuse(f"the name {name!r} of a namespace starts with an underscore")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> _PublicNamespace:
    made = _PublicNamespace()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


def _dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return dict(*args, **kwargs)  # a function: the type itself would show its attributes


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
