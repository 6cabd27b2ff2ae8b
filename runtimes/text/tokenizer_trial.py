"""A tokenizer is tried out before it is trusted. It is imported in helper processes alone.

What is true of the trial is true afterwards: loading is deterministic, the pipeline makes no more of a text than it is
allowed to, and a panic of the library, or an endless loop, has shown itself here.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterator
from typing import Any

from tokenizers import Tokenizer

from l4export.runtimes.text.tokenizer_setup import load_tokenizer

__all__ = ["answer"]

MOST_STEPS = 64
"""Steps of a normalizer, pre-tokenizer, post-processor or decoder; Llama 4's have two."""

MOST_GROWTH = 16
"""How many times longer a text may become in such a pipeline, and so how much more memory it takes; Llama 4: 2."""

LONGEST_TOKEN = 1 << 16
"""Characters of a token; Llama 4's longest has 128."""

PROBE_SECONDS = 0.5
"""Processor time that a probe of at most 6 thousand characters may take; Llama 4's takes 5 ms."""

MOST_LETTERS, REPEATS = 300, 100
"""Characters of patterns that are tried by themselves, so many times in a row: it is what patterns dwell on."""

PROBES = (
    "",
    "".join(map(chr, range(1, 0x500))) * 2,
    "The quick brown fox doesn't jump: 1234567 times\n\n\t over it!? " * 50,
    "日本語 שלום 🙂👩‍🚀🇩🇪 e\u0301 \ufffd ﷺ ½ " * 50,
    *(character * 5_000 for character in "a 0.\n"),
    "ab" * 2_500 + "!",
)


def answer(request: dict[str, Any], payload: bytes) -> dict[str, Any]:
    """Load a tokenizer, use it as an engine will, and tell what it has.

    Args:
        request: Has `added`, tokens as for `load_tokenizer`; and `survey`, whether to look at every token.
        payload: tokenizer.json.

    Returns:
        After a survey `highest`, the largest token id, -1 without any, and `token`, its text; or else nothing.

    Raises:
        ValueError: it cannot be loaded, does not work, or is beyond a limit.
        BaseException: a panic of the library.
    """
    tokenizer = load_tokenizer(payload, request["added"])
    tokenizer.no_truncation()  # as `TextCodec` does
    tokenizer.no_padding()
    letters: set[str] = set()
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (part := getattr(tokenizer, name)) is not None:
            state = json.loads(part.__getstate__())
            _check_pipeline(name, state)
            letters |= _letters(state)
    _use(tokenizer, letters)
    return _survey(tokenizer) if request["survey"] else {}


def _survey(tokenizer: Tokenizer) -> dict[str, Any]:
    vocabulary = tokenizer.get_vocab()
    if (longest := max(map(len, vocabulary), default=0)) > LONGEST_TOKEN:
        raise ValueError(f"a token has {longest} characters, at most {LONGEST_TOKEN} are taken")
    ids = list(vocabulary.values())
    for at in range(0, len(ids), 4096):
        tokenizer.decode(ids[at : at + 4096], skip_special_tokens=False)
    token, highest = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
    return {"highest": highest, "token": token}


def _check_pipeline(name: str, state: Any) -> None:
    steps = list(_steps(state))
    if len(steps) > MOST_STEPS:
        raise ValueError(f"its {name} has {len(steps)} steps, at most {MOST_STEPS} are taken")
    growth = math.prod(map(_growth, steps))
    if growth > MOST_GROWTH:
        raise ValueError(f"its {name} can make a text {growth:.4g} times as long, at most {MOST_GROWTH} times is taken")


def _steps(state: Any) -> Iterator[dict[str, Any]]:
    """The objects with a type that are somewhere in a pipeline."""
    waiting = [state]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("type"), str):
                yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _letters(state: Any) -> set[str]:
    """The characters that patterns of a pipeline name."""
    patterns = (step.get("pattern") for step in _steps(state))
    return set("".join(str(text) for pattern in patterns if isinstance(pattern, dict) for text in pattern.values()))


def _growth(step: dict[str, Any]) -> float:
    """How many times longer a step can make a text, or the tokens of one."""
    content = step.get("content")
    match step["type"]:
        case "Replace":
            pattern = step.get("pattern", {})
            least = len(pattern["String"]) if "String" in pattern else 0
            return max(1.0, len(str(content)) / least if least else 1 + len(str(content)))
        case "Prepend":
            return 1.0 + len(str(step.get("prepend", ""))) / 16  # once a text, or once a word of it
        case "ByteLevel":
            return 2.0  # two bytes for a byte
        case "TemplateProcessing":
            return max(1.0, sum("Sequence" in item for item in step.get("single", [])))
    return 1.0


def _use(tokenizer: Tokenizer, letters: Collection[str]) -> None:
    """Encode texts of all kinds, and decode what that gives."""
    for text in (*PROBES, *(letter * REPEATS for letter in sorted(letters)[:MOST_LETTERS])):
        began = time.thread_time()
        encoded = tokenizer.encode(text).ids
        tokenizer.decode(encoded)
        tokenizer.decode(encoded[-1:], skip_special_tokens=False)
        taken = time.thread_time() - began
        if taken > PROBE_SECONDS:
            raise ValueError(f"a text of {len(text)} characters takes {taken:.3g} seconds to encode and decode")
    tokenizer.encode(PROBES[1], add_special_tokens=False)
    added = list(tokenizer.get_added_tokens_decoder().values())
    for token in added[:: max(1, len(added) // 100)]:
        tokenizer.encode(token.content)
