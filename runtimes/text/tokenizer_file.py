"""tokenizer.json: read within bounds, tried out in a helper process, and only then loaded here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4export.errors import EnvironmentLacks, InputError, L4Error, one_line
from l4export.runtimes.text.helper_process import HelperFailed, HelperProcess
from l4export.runtimes.text.text_files import read_bounded
from l4export.runtimes.text.tokenizer_setup import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TOKENIZER", "TokenizerFacts", "library_errors", "open_tokenizer", "try_tokenizer"]

TOKENIZER = "tokenizer.json"

TOKENIZER_BYTES = 128 << 20
"""Largest tokenizer.json that is read; Llama 4's has 28 MB."""

TRIAL_SECONDS = 30.0
"""Time that trying a tokenizer may take; Llama 4's takes about a second."""

MEMORY_BYTES = 1 << 30
"""Address space of the process that tries a tokenizer; Llama 4's takes 0.3 GB."""


@dataclass(frozen=True)
class TokenizerFacts:
    """What a trial found: the largest token id (-1: there is none) and the text of that token."""

    highest: int
    token: str


def open_tokenizer(path: Path, added: Sequence[Mapping[str, Any]]) -> Tokenizer:
    """Load a tokenizer.json, after a trial that proves it harmless. Arguments and errors are those of `try_tokenizer`.

    The trial is a load in a process of its own, which is ended if that takes too long or too much memory. It doubles
    the time that opening takes: Llama 4's tokenizer takes two seconds instead of one.
    """
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise EnvironmentLacks("the package tokenizers is not installed: pip install 'l4export[cpu]'") from None
    data = read_bounded(path, TOKENIZER_BYTES)
    _ask(path, data, added, survey=False)
    with library_errors(f"{path}: not a tokenizer", _REMEDY):
        return load_tokenizer(data, added)


def try_tokenizer(path: Path, added: Sequence[Mapping[str, Any]]) -> TokenizerFacts:
    """Try a tokenizer as `open_tokenizer` does, with every one of its tokens, and tell what was found.

    Args:
        path: A tokenizer.json.
        added: Tokens that the files beside it add, as `TextFiles.added`.

    Raises:
        InputError: it cannot be loaded, does not work, makes the library panic, or exceeds a limit.
        StorageError: it cannot be read.
        EnvironmentLacks: the package tokenizers is missing.
    """
    found = _ask(path, read_bounded(path, TOKENIZER_BYTES), added, survey=True)
    return TokenizerFacts(int(found["highest"]), str(found["token"]))


_REMEDY = "copy it from the checkpoint again"


def _ask(path: Path, data: bytes, added: Sequence[Mapping[str, Any]], survey: bool) -> Any:
    helper = HelperProcess("tokenizer", MEMORY_BYTES, 1 << 20)
    try:
        return helper.ask({"added": list(added), "survey": survey}, TRIAL_SECONDS, data)
    except HelperFailed as error:
        raise InputError(f"{path}: not a tokenizer: {error}; {_REMEDY}") from None
    finally:
        helper.close()


@contextmanager
def library_errors(what: str, remedy: str) -> Iterator[None]:
    """Raise what goes wrong in the library, panics included, as an `InputError`: "what: reason; remedy"."""
    try:
        yield
    except L4Error:
        raise
    except Exception as error:  # the library raises bare ones
        raise InputError(f"{what}: {one_line(error)}; {remedy}") from None
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":  # Ctrl-C
            raise
        raise InputError(f"{what}: the tokenizers library panics ({one_line(error)}); {remedy}") from None
