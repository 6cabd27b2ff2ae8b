"""Chat templates: programs that come with a checkpoint, run in a sandbox with limits of size and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l4export.errors import EnvironmentLacks, InputError, one_line

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
    try:
        from jinja2 import TemplateError

        from l4export.runtimes.text.template_sandbox import TemplateSandbox, refuse
    except ImportError:
        raise EnvironmentLacks("the package jinja2 is not installed: pip install 'l4export[cpu]'") from None
    try:
        pieces, size = [], 0
        for piece in TemplateSandbox(RENDER_SECONDS, PROMPT_CHARACTERS).compiled(source).generate(variables):
            pieces.append(piece)
            size += len(piece)
            if size > PROMPT_CHARACTERS:
                refuse(f"it writes more than {PROMPT_CHARACTERS} characters")
        return "".join(pieces)
    except Exception as error:  # a template can raise anything: its own errors, TypeError, RecursionError, MemoryError
        reason = one_line(error, TemplateError)
        raise InputError(f"chat template: {reason}; correct the messages or chat_template.jinja") from None
