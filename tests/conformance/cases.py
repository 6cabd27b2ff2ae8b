"""The cases of the conformance set: sequences of calls, for an engine of any kind.

A call is a dict with `call`, the name of a function of the C ABI without `l4_`, and its arguments. What a call makes is
kept under the name `as`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pictures import picture
from safetensors.numpy import save_file

from l4export.engine.manifest import Manifest
from workshop import random_ids

__all__ = ["SAVED", "cases_of", "write_pictures"]

Call = dict[str, Any]

SAVED = "calls.session"
"""What case `calls` saves and case `loaded` loads, there or from another runtime."""

PICTURES = {"wide": (20, 45), "tile": (16, 16), "small": (3, 5)}
"""Heights and widths."""


def cases_of(manifest: Manifest, has_text: bool) -> dict[str, list[Call]]:
    """The calls of every case for an engine, by the case's name."""
    made = {
        "calls": _calls(manifest),
        "loaded": _loaded(),
        "starts": _starts(manifest),
        "errors": _errors(manifest),
        "generate": _generate(),
        "sampling": _sampling(),
    }
    if has_text:
        made |= {"text": _text(), "spoken": _spoken()}
    if manifest.vision is not None:
        made["images"] = _images()
    return made


def write_pictures(path: Path) -> None:
    """The pictures of the cases, uint8 [height, width, 3], as one safetensors file."""
    save_file({name: picture(*size) for name, size in PICTURES.items()}, path)


def ids(count: int, seed: int = 0) -> list[int]:
    """Ids of plain text: none of them is special."""
    return [int(token) for token in random_ids(count, 230, seed)]


def _call(name: str, **arguments: Any) -> Call:
    return {"call": name, **{key.rstrip("_"): value for key, value in arguments.items()}}


def _append(session: str, *rows: list[int], last_only: bool = False, **more: Any) -> Call:
    return _call("session_append", session=session, tokens=list(rows), last_only=last_only, **more)


def _calls(manifest: Manifest) -> list[Call]:
    """Rows of different lengths that grow, go back, are copied, saved and loaded."""
    return [
        _call("session_create", as_="s", rows=3, capacity=80),
        _append("s", ids(37), ids(20, 1), ids(5, 2)),
        _append("s", [5], [9], [11]),
        _append("s", [], [7], []),
        _append("s", ids(3, 3), [], ids(18, 4), last_only=True),
        _call("session_info", session="s"),
        _call("session_rewind", session="s", tokens=[1, 2, 0]),
        _append("s", [1], [2], [3]),
        _call("session_rewind_row", session="s", row=2, tokens=24),
        _append("s", [], [], ids(4, 5)),
        _call("session_fork", session="s", rows=[1, 1, 0], as_="t"),
        _append("t", [8], [8], [8]),
        _append("t", [20, 21], [], [22]),
        _call("session_copy_row", session="t", row=1, source="s", source_row=0),
        _call("session_info", session="t"),
        _append("t", [30], [30], [30]),
        _call("session_save", session="t", file=SAVED),
        _append("t", [31], [31], [31]),
        _call("session_reset", session="s"),
        _append("s", ids(17, 6), ids(16, 7), ids(33, 8), last_only=True),
        _call("session_close", session="s"),
        _append("t", [32], [32], [32]),
    ]


def _loaded() -> list[Call]:
    """What was saved, by this runtime or another, continues as if it had never been away."""
    return [
        _call("session_load", file=SAVED, as_="t"),
        _call("session_info", session="t"),
        _append("t", [31], [31], [31]),
        _call("session_generate", session="t", prompts=[[32], [32], [32]], max_new_tokens=10),
        _call("session_info", session="t"),
    ]


def _starts(manifest: Manifest) -> list[Call]:
    """Rows that begin at other positions than 0, up to the last one that there is."""
    most = manifest.max_context
    return [
        _call("session_create", as_="s", rows=3, capacity=30, starts=[0, 13, most - 21]),
        _append("s", ids(6), ids(9, 1), ids(20, 2)),
        _append("s", ids(2), ids(2, 1), [4]),
        _append("s", [], [], [4]),
        _call("session_info", session="s"),
    ]


def _errors(manifest: Manifest) -> list[Call]:
    """Calls that are refused, each of which leaves the session as it was."""
    most, vocab = manifest.max_context, manifest.model.vocab_size
    return [
        _call("session_create", as_="x", rows=0),
        _call("session_create", as_="x", rows=1, capacity=most + 1),
        _call("session_create", as_="x", rows=2, starts=[0, most]),
        _call("session_create", as_="x", rows=1, starts=[-1]),
        _call("session_create", as_="s", rows=2, capacity=40),
        _append("s", ids(20), ids(18, 1), last_only=True),
        _append("s", [vocab], [1]),
        _append("s", [-1], [1]),
        _append("s", ids(21), [1]),
        _append("s", [], []),
        _call("session_rewind", session="s", tokens=[21, 0]),
        _call("session_rewind", session="s", tokens=[-1, 0]),
        _call("session_rewind_row", session="s", row=2, tokens=0),
        _call("session_rewind_row", session="s", row=1, tokens=19),
        _call("session_rewind_row", session="s", row=0, tokens=7),
        _call("session_fork", session="s", rows=[2], as_="x"),
        _call("session_fork", session="s", rows=[], as_="x"),
        _call("session_copy_row", session="s", row=0, source="s", source_row=5),
        _call("session_load", file="nothing.session", as_="x"),
        _call("session_save", session="s", file="no directory/s"),
        _call("session_generate", session="s", prompts=[[], []], max_new_tokens=3),
        _call("session_generate", session="s", prompts=[[1], [1]], max_new_tokens=0),
        _call("session_generate", session="s", prompts=[[1], [1]], max_new_tokens=3, stop_token_ids=[vocab]),
        _call("session_generate", session="s", prompts=[[1], [1]], max_new_tokens=3, logprobs=vocab + 1),
        *(
            _call("session_generate", session="s", prompts=[[1], [1]], max_new_tokens=3, sampling=bad)
            for bad in (
                {"temperature": -1.0},
                {"temperature": 1.0, "top_p": 0.0},
                {"temperature": 1.0, "min_p": 1.5},
                {"temperature": 1.0, "top_k": -1},
                {"repetition_penalty": 0.0},
            )
        ),
        _call("session_info", session="s"),
        _append("s", [3], [4]),
    ]


def _generate() -> list[Call]:
    """Greedy answers, across chunks, up to the end of the context; with log probabilities and own stop tokens."""
    return [
        _call("session_create", as_="s", rows=1),
        _call("session_generate", session="s", prompts=[ids(10)], max_new_tokens=40, logprobs=3, stop_token_ids=[]),
        _call("session_info", session="s"),
        _call("session_create", as_="b", rows=3, capacity=60),
        _call(
            "session_generate",
            session="b",
            prompts=[ids(30), ids(11, 1), ids(45, 2)],
            max_new_tokens=25,
            stop_token_ids=[],
        ),
        _call("session_info", session="b"),
        _call("session_generate", session="b", prompts=[[], [7], []], max_new_tokens=6, logprobs=0),
        _call("session_generate", session="b", prompts=[[], [3], []], max_new_tokens=9, stop_token_ids=list(range(99))),
        _call("session_create", as_="e", rows=2, capacity=12),
        _call("session_generate", session="e", prompts=[ids(10), ids(4)], max_new_tokens=50),
    ]


def _sampling() -> list[Call]:
    """Drawn answers: each setting, rows that share a seed, rows with settings of their own."""
    settings: list[Any] = [
        {"temperature": 0.8, "seed": 5},
        {"temperature": 1.3, "top_k": 7, "seed": 2**63 - 1},
        {"temperature": 1.0, "top_p": 0.7, "seed": 11},
        {"temperature": 1.5, "min_p": 0.2, "seed": 12},
        {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2, "seed": 13},
        {"repetition_penalty": 1.7},
        [{"temperature": 0.9, "seed": 3}, {}],
        [{"temperature": 0.9, "seed": 3}, {"temperature": 0.9, "seed": 3}],
    ]
    made = [_call("session_create", as_="s", rows=2, capacity=64)]
    for sampling in settings:
        made += _answered([ids(14), ids(9, 3)], 24, sampling=sampling, logprobs=2)
    return made


def _answered(prompts: list[list[int]], max_new_tokens: int, **more: Any) -> list[Call]:
    """Session `s` generates up to the last token, and is emptied."""
    asked = _call("session_generate", session="s", prompts=prompts, max_new_tokens=max_new_tokens, stop_token_ids=[])
    return [{**asked, **more}, _call("session_reset", session="s")]


TEXTS = (
    "",
    "In the beginning",
    "naïve café e\u0301 日本語 🙂👩‍🚀\n\n  \t two  spaces",
    "<|begin_of_text|>spelled<|eot|>",
    "x" * 300,
    "\0\x01\x7f\u200b\ufeff",
)


def _text() -> list[Call]:
    """Encoding, decoding, and chats."""
    made = []
    for text in TEXTS:
        for add_special in (True, False):
            for as_text in (True, False):
                made.append(
                    _call("tokenizer_encode", text=text, add_special_tokens=add_special, special_tokens_as_text=as_text)
                )
    for skip in (True, False):
        made.append(_call("tokenizer_decode", ids=list(range(256)), skip_special=skip))
        made.append(_call("tokenizer_decode", ids=[240, 130, 131, 100, 227, 255, 10_000], skip_special=skip))
    chats: list[Any] = [
        {"messages": [{"role": "user", "content": "Who are you?"}]},
        {"messages": [{"role": "system", "content": "Be <|eot|> brief."}, {"role": "user", "content": "Hi 🙂"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "add_generation_prompt": False},
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]},
        {"messages": []},
        {"messages": "none"},
        {"messages": [{"role": "user", "content": "a"}], "chat_template": "missing"},
    ]
    for chat in chats:
        made.append(_call("tokenizer_render_chat", chat=chat))
        for as_text in (False, True):
            made.append(_call("tokenizer_encode_chat", chat=chat, special_tokens_as_text=as_text))
    return made


def _spoken() -> list[Call]:
    """Answers as text, and stop strings."""
    made = [_call("session_create", as_="s", rows=2, capacity=64)]
    drawn = {"temperature": 1.0, "top_k": 200, "seed": 21}
    for stops in ([], ["e"], ["th", "and", "\n"], ["\ufffd\ufffd"], [""]):
        made += _answered([ids(12), ids(7, 5)], 30, sampling=drawn, stop_strings=stops, text=True)
    return made


def _images() -> list[Call]:
    """Pictures into tiles, prompts that show them, and sessions that hold them."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    return [
        _call("images_create", as_="i", pictures=["wide"]),
        _call("images_create", as_="j", pictures=["tile", "small"], max_tiles=1),
        _call("images_create", as_="x", pictures=["tile"], max_tiles=1000),
        _call("images_expand", images="i", ids=[1, 2, 234, 3], as_="p"),
        _call("images_expand", images="i", ids=[1, 2, 3], as_="x"),
        _call("images_expand", images=None, ids=[1, 234, 3], as_="x"),
        _call("images_expand", images="j", ids=[234, 9, 234], as_="q"),
        _call("tokenizer_encode_chat", chat={"messages": chat}, special_tokens_as_text=False),
        _call("session_create", as_="s", rows=2, capacity=96),
        _append("s", "p", [4, 5], images=["i", None]),  # type: ignore[arg-type]
        _append("s", [6], [7]),
        _append("s", [], "q", images=[None, "j"], last_only=True),  # type: ignore[arg-type]
        _call("session_info", session="s"),
        _append("s", "p", [], images=[None, None]),  # type: ignore[arg-type]
        _append("s", [4], [], images=["i", None]),
        _call("session_rewind_row", session="s", row=1, tokens=3),
        _call("session_rewind_row", session="s", row=0, tokens=6),
        _call("session_save", session="s", file="images.session"),
        _call("session_load", file="images.session", as_="t"),
        _append("t", [8], [8]),
        _call("session_reset", session="s"),
        _call("engine_forget_images"),
        _call(
            "session_generate", session="s", prompts=["p", "q"], images=["i", "j"], max_new_tokens=8, stop_token_ids=[]
        ),
    ]
