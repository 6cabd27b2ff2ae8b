"""The check of a checkpoint's tokenizer and chat templates when an engine is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from l4export.errors import EnvironmentLacks, InputError
from l4export.runtimes.text.chat_template import DEFAULT, ChatTemplates
from l4export.runtimes.text.text_files import TextFiles, read_text_files
from l4export.runtimes.text.tokenizer_file import TOKENIZER, try_tokenizer

__all__ = ["check_text"]

_CONVERT = "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) of transformers makes one"


def check_text(directory: Path, vocab_size: int) -> list[str]:
    """Try the tokenizer of a checkpoint and parse its chat templates.

    Args:
        directory: The checkpoint.
        vocab_size: Tokens that the model knows.

    Returns:
        What a person should know, a line each: what is missing, and what an engine will refuse.

    Raises:
        InputError: a file that is broken or too large, a tokenizer that does not work, a template that cannot be
            parsed.
        StorageError: a file that cannot be read.
    """
    if not (directory / TOKENIZER).exists():
        other = directory / "tokenizer.model"
        return [f"{other.name} alone is not read: the engine takes token ids; {_CONVERT}"] if other.exists() else []
    files = read_text_files(directory)
    try:
        return [*_about_tokens(directory, files, vocab_size), *_about_templates(directory, files)]
    except EnvironmentLacks as error:
        return [f"the text files are copied and were not tried: {error}"]


def _about_tokens(directory: Path, files: TextFiles, vocab_size: int) -> Iterator[str]:
    facts = try_tokenizer(directory / TOKENIZER, files.added)
    if facts.highest >= vocab_size:
        yield (
            f"the tokenizer has token ids up to {facts.highest} ({facts.token[:40]!r}), the model {vocab_size} tokens: "
            "prompts with the others are refused"
        )


def _about_templates(directory: Path, files: TextFiles) -> Iterator[str]:
    templates = ChatTemplates(files.chat_templates, files.special_tokens)
    for name, source in files.chat_templates.items():
        try:
            form = templates.content_form(source)
        except InputError as error:
            raise InputError(f"{directory / str(files.templates_from)}: {name} {error}") from None
        if form == "neither" and name == DEFAULT:
            yield f"{files.templates_from}: the chat template does not write what a user says; `run` needs --raw"
    if not files.chat_templates:
        yield "the tokenizer has no chat template: `run --prompt` continues a text as it is"
    elif DEFAULT not in files.chat_templates:
        yield f"no chat template is called {DEFAULT!r}: `run` needs --raw, and Python the name of one"
    if files.processor_differs:
        yield f"{files.processor_differs} has another chat template than {files.templates_from}, whose is used"
