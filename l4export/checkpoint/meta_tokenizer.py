"""Turns Meta's tokenizer.model into the tokenizer.json that l4export and transformers read.

tokenizer.model is a file of tiktoken: a line for each token, its bytes in base64 and its rank. A text is cut by a
pattern; a piece that is a token is that token, and any other is merged from its bytes, always the two neighbours whose
union has the lowest rank. Behind these tokens stand 2048 special ones [llama-models, models/llama4/tokenizer.py].
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from l4export.checkpoint.sample_tokenizer import added_token, begins_with, byte_letters, tokenizer_settings
from l4export.errors import InputError, StorageError
from l4export.storage.regular_files import read_small

__all__ = ["SPECIAL_TOKENS", "write_tokenizer_json"]

_MOST_BYTES = 32 * 2**20
_MOST_TOKENS = 2**19
_LONGEST = 256  # bytes of a token; Llama 4's longest has 128

_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _special_tokens() -> tuple[str, ...]:
    """By their places; what has no name is reserved under a name of its own."""

    def reserved(kind: str, start: int, stop: int) -> list[str]:
        return [f"{kind}reserved_special_token_{number}" for number in range(start, stop)]

    text, vision = "text_post_train_", "vision_"
    names = [
        *("begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix"),
        *("header_start", "header_end", "eom", "eot", "step", *reserved(text, 0, 6)),
        *("python_start", "python_end", "finetune_right_pad", *reserved(text, 8, 69)),
        *("image_start", "image_end", *reserved(vision, 0, 2), "tile_x_separator", "tile_y_separator"),
        *(*reserved(vision, 2, 6), "image", *reserved(vision, 6, 7), "patch", *reserved(vision, 7, 1048)),
        *(*reserved("reasoning_", 0, 8), "reasoning_thinking_start", "reasoning_thinking_end"),
    ]
    names += reserved("", 0, 2048 - len(names))
    return tuple(f"<|{name}|>" for name in names)


SPECIAL_TOKENS = _special_tokens()
"""Llama 4's 2048 special tokens, in the order of their ids."""


def write_tokenizer_json(folder: Path) -> Path:
    """Write tokenizer.json and tokenizer_config.json beside the tokenizer.model of a folder; returns the former's path.

    There is no chat template among them: text is continued, not answered.

    Raises:
        InputError: tokenizer.model is missing or damaged, or one of the two files is there already.
        StorageError: reading or writing failed.
    """
    folder = Path(folder)
    ranks = _read_ranks(folder / "tokenizer.model")
    begin, end, pad = (f"<|{name}|>" for name in ("begin_of_text", "end_of_text", "finetune_right_pad"))
    files = {"tokenizer.json": _tokenizer(ranks), "tokenizer_config.json": tokenizer_settings(begin, end, pad)}
    for name in files:
        if (folder / name).exists():
            raise InputError(f"{folder / name}: is there already; remove it to have it made")
    try:
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written to ({error.strerror}); check its permissions") from None
    return folder / "tokenizer.json"


def _read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens by their bytes. Ranks are the ids, 0 and up, and every single byte is a token."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_small(path, _MOST_BYTES, "download it again").splitlines()):
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise InputError(f"{path}: line {number + 1} is not a token in base64 and its rank") from None
        if rank != str(number).encode() or token in ranks or not 0 < len(token) <= _LONGEST:
            raise InputError(f"{path}: line {number + 1} is not a new token of rank {number}; download it again")
        ranks[token] = number
    if len(ranks) > _MOST_TOKENS or any(bytes([byte]) not in ranks for byte in range(256)):
        raise InputError(f"{path}: {len(ranks)} tokens, which must be all bytes and at most {_MOST_TOKENS}")
    return ranks


def _tokenizer(ranks: dict[bytes, int]) -> dict[str, Any]:
    """The content of tokenizer.json, as the library tokenizers reads it."""
    letters = byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated", "invert": False}
    special = {token: len(ranks) + index for index, token in enumerate(SPECIAL_TOKENS)}
    merges = [f"{spelled[token[:cut]]} {spelled[token[cut:]]}" for token in ranks for cut in _cuts(token, ranks)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(token, number) for token, number in special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": begins_with(SPECIAL_TOKENS[0], len(ranks)),
        "decoder": level,
        "model": {
            "type": "BPE",
            "ignore_merges": True,  # a piece that is a token is that token
            "vocab": {spelled[token]: number for token, number in ranks.items()},
            "merges": merges,
        },
    }


def _cuts(token: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Where a token can be merged from two others, by their ranks: every such pair has the priority of the token."""
    found = [cut for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks]
    return sorted(found, key=lambda cut: (ranks[token[:cut]], ranks[token[cut:]]))
