"""The chat templates and special tokens of a directory, found where transformers 5 finds them.

transformers' tokenizer looks for chat templates in chat_template.jinja and additional_chat_templates/*.jinja, or else
in tokenizer_config.json; its processor, for models that see images too, in processor_config.json, chat_template.json
and the .jinja files. l4export runs on text, so the processor's own places count only where the
tokenizer has no template. Special tokens stand in tokenizer_config.json, special_tokens_map.json and added_tokens.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4export.engine.companions import TEMPLATE_FOLDER
from l4export.errors import InputError, StorageError, one_line

__all__ = ["TextFiles", "read_bounded", "read_text_files"]

SMALL_FILE_BYTES = 16 << 20
"""Largest file beside tokenizer.json that is read; Llama 4's tokenizer_config.json has 0.3 MB."""

MOST_TEMPLATES = 64

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that every tokenizer may name."""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TextFiles:
    """What stands beside tokenizer.json.

    Attributes:
        chat_templates: Sources of chat templates by name: "default", "tool_use" (for prompts with tools), and others.
        templates_from: The file that they come from, for messages; None where there are none.
        processor_differs: The file in which the processor of an image model has another chat template; None: none has.
        special_tokens: What templates see as `bos_token`, `eos_token`, `image_token` and so on.
        added: Tokens that these files add to the tokenizer, for `load_tokenizer`.
        control_tokens: Ordinary added tokens that count as special ones in a user's text; None: no file names any.
        special_as_text: Whether the tokenizer reads special tokens in a text as text.
    """

    chat_templates: Mapping[str, str]
    templates_from: str | None
    processor_differs: str | None
    special_tokens: Mapping[str, str]
    added: tuple[Mapping[str, Any], ...]
    control_tokens: tuple[str, ...] | None
    special_as_text: bool


def read_text_files(directory: Path) -> TextFiles:
    """Read what a checkpoint or an engine has beside its tokenizer.json.

    Raises:
        InputError: a file that is broken or too large.
        StorageError: one that cannot be read.
    """
    config = _read_json(directory / "tokenizer_config.json")
    has_decoder = "added_tokens_decoder" in config
    if not has_decoder:  # as transformers, which reads the older files where the newer form is absent
        config |= _read_json(directory / "special_tokens_map.json")
    templates, source = _tokenizer_templates(directory, config)
    processor, processor_source = _processor_templates(directory)
    differs = bool(templates and processor and templates.get("default") != processor.get("default"))
    if not templates:
        templates, source = processor, processor_source
    tokens, extra = _special_tokens(config)
    return TextFiles(
        chat_templates=templates,
        templates_from=source if templates else None,
        processor_differs=processor_source if differs else None,
        special_tokens=tokens,
        added=tuple(_added_tokens(directory, config, has_decoder, tokens, extra)),
        control_tokens=_texts(config.get("chat_control_tokens")),
        special_as_text=config.get("split_special_tokens") is True,
    )


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes.

    Raises:
        InputError: it is larger, or no regular file.
        StorageError: it cannot be read.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: not a readable regular file; restore or remove it")
        if (size := path.stat().st_size) > limit:
            raise InputError(f"{path}: {size} bytes, at most {limit} are read: is this the right file?")
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None


def _tokenizer_templates(directory: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """The tokenizer's templates, and the file that they are from: files of their own come before the configuration."""
    if found := _jinja_files(directory):
        return found, "chat_template.jinja" if "default" in found else TEMPLATE_FOLDER
    path = directory / "tokenizer_config.json"
    return _named(config.get("chat_template"), path), path.name


def _processor_templates(directory: Path) -> tuple[dict[str, str], str]:
    """The templates of an image model's processor, where it has its own; and the file that they are from."""
    for name in ("processor_config.json", "chat_template.json"):
        path = directory / name
        if path.is_file() and (found := _read_json(path).get("chat_template")) is not None:
            return _named(found, path), name
    return {}, ""


def _jinja_files(directory: Path) -> dict[str, str]:
    found = {"default": directory / "chat_template.jinja"} if (directory / "chat_template.jinja").is_file() else {}
    for path in sorted([*directory.glob(f"{TEMPLATE_FOLDER}/*.jinja"), *directory.glob(f"{TEMPLATE_FOLDER}.*.jinja")]):
        found[path.name.removeprefix(f"{TEMPLATE_FOLDER}.").removesuffix(".jinja")] = path
    if len(found) > MOST_TEMPLATES:
        raise InputError(f"{directory}: {len(found)} chat templates, at most {MOST_TEMPLATES} are read; remove some")
    return {name: _decode_utf8(path, read_bounded(path, SMALL_FILE_BYTES)) for name, path in found.items()}


def _named(found: Any, path: Path) -> dict[str, str]:
    """Templates as JSON has them: one text, a list of {name, template}, or an object of names and texts."""
    if isinstance(found, list) and all(isinstance(item, dict) for item in found):
        found = {item.get("name"): item.get("template") for item in found}
    elif found is None or isinstance(found, str):
        found = {} if found is None else {"default": found}
    if not isinstance(found, dict) or not all(isinstance(text, str) for item in found.items() for text in item):
        raise InputError(f"{path}: chat_template is neither text nor a list of name and template: correct or remove it")
    return found


def _special_tokens(config: Mapping[str, Any]) -> tuple[dict[str, str], list[Any]]:
    """Special tokens with names, which templates see, and those without, as the configuration has them."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    for key in (extra, config.get("model_specific_special_tokens")):
        if isinstance(key, dict):
            named |= key
    order = [*SPECIAL_TOKENS, *(name for name in named if name not in SPECIAL_TOKENS)]
    tokens = {name: text for name in order if (text := _content(named.get(name)))}
    return tokens, extra if isinstance(extra, list) else []


def _added_tokens(
    directory: Path, config: Mapping[str, Any], has_decoder: bool, tokens: Mapping[str, str], extra: list[Any]
) -> list[dict[str, Any]]:
    """Tokens that transformers adds to those of tokenizer.json, in its order."""
    special = {*tokens.values(), *filter(None, map(_content, extra))}
    added = _decoder_tokens(directory / "tokenizer_config.json", config) if has_decoder else []
    for token in added:
        token["special"] = bool(token.get("special")) or token["content"] in tokens.values()
    if not has_decoder:
        listed = [item for item in _read_json(directory / "added_tokens.json").items() if type(item[1]) is int]
        for content, number in sorted(listed, key=lambda item: item[1]):
            ordinary = content not in special
            flags = {"special": not ordinary, "normalized": ordinary, "configured": True}
            added.append({"content": content, "id": number, **flags})
    return [*added, *({"content": content, "special": True} for content in _ordered(tokens, extra))]


def _decoder_tokens(path: Path, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of `added_tokens_decoder`, in the order of their ids."""
    entries = config["added_tokens_decoder"]
    try:
        by_id = [entries[index] for index in sorted(entries, key=int)]
        tokens = [{"content": token["content"], "configured": True, **_flags(token)} for token in by_id]
    except (AttributeError, KeyError, TypeError, ValueError):
        tokens = [{"content": None}]
    if not all(isinstance(token["content"], str) for token in tokens):
        raise InputError(f"{path}: added_tokens_decoder is no object of ids and tokens; correct or remove it")
    return tokens


def _flags(token: Mapping[str, Any]) -> dict[str, bool]:
    return {flag: token[flag] for flag in _FLAGS if isinstance(token.get(flag), bool)}


def _ordered(tokens: Mapping[str, str], extra: list[Any]) -> list[str]:
    return list(dict.fromkeys([*tokens.values(), *filter(None, map(_content, extra))]))


def _texts(value: Any) -> tuple[str, ...] | None:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else None


def _content(token: Any) -> str | None:
    """The text of a special token, which is given plainly or as an object with "content"."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; an absent file is an empty one."""
    if not path.exists():
        return {}
    try:
        value = json.loads(_decode_utf8(path, read_bounded(path, SMALL_FILE_BYTES)))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {one_line(error)}; copy it from the checkpoint again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON {type(value).__name__}, not an object; copy it from the checkpoint again")
    return value


def _decode_utf8(path: Path, data: bytes) -> str:
    """The text of a file; a byte order mark, as some editors put before it, is no part of it."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; copy it from the checkpoint again") from None
