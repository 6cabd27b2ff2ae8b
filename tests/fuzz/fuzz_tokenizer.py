"""Class `tokenizer`: tokenizer.json of all kinds, its settings, and chat templates."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_case import Case, Subject
from fuzz_files import Files, replace_file, write_files
from fuzz_json import Raw, damaged_text, dumps, mutate_json, nested
from fuzz_template import template
from fuzz_valid import TEMPLATE, tokenizers

__all__ = ["TokenizerSubject", "mutate_tokenizer"]

_TEXTS = ["And God said, <|begin|>Let there be light", "", "a" * 400, "é\u0301 日本 \U0001f600\u200d\n\t<|user|>\0"]
_MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is light?"},
    {"role": "assistant", "content": [{"type": "text", "text": "Light."}]},
]


class TokenizerSubject(Subject):
    """Tokenizers and templates: opened, texts encoded, ids decoded, chats rendered."""

    name = "tokenizer"

    def prepare(self) -> None:
        """One tokenizer of each kind."""
        for name, files in tokenizers().items():
            write_files(self.valid / name, files)

    def begin(self) -> None:
        """Open one and use all of it."""
        for kind in self.valid.iterdir():
            _use(kind)

    def make(self, rng: random.Random, place: Path) -> Case:
        """Half of the cases are about tokenizer.json, half about templates."""
        kind = rng.choice(["bpe", "bpe", *sorted(path.name for path in self.valid.iterdir())])
        files = {path.name: path.read_bytes() for path in (self.valid / kind).iterdir()}
        what = [kind]
        if rng.random() < 0.5:
            files["tokenizer.json"], told = mutate_tokenizer(files["tokenizer.json"], rng)
            what += told
        else:
            what.append(_mutate_template(files, rng))
        write_files(place / "model", files)
        if rng.random() < 0.1:
            what.append(replace_file(place / "model" / rng.choice(sorted(files)), rng))
        return Case(lambda: _use(place / "model"), what)


def _use(directory: Path) -> None:
    from l4export.runtimes.text.codec import TextCodec

    codec = TextCodec.open(directory)
    if codec is None:
        return
    for text in _TEXTS:
        ids = codec.encode(text)
        assert all(type(token) is int and 0 <= token < 2**32 for token in ids), "ids that are none"
        assert isinstance(codec.decode(ids), str)
    stream = codec.stream()
    for token in (0, 65, 300, 2**31, 259, 70):
        stream.push(token)
    stream.flush()
    if codec.has_chat_template:
        assert isinstance(codec.render_chat(_MESSAGES[:2]), str)
        codec.encode_chat(_MESSAGES, add_generation_prompt=False, tools=[{"name": "f"}])


def _mutate_template(files: Files, rng: random.Random) -> str:
    """Another template, or another place for it, or other settings beside it."""
    config = json.loads(files["tokenizer_config.json"])
    way = rng.randrange(7)
    source = template(rng) if way < 5 else TEMPLATE
    if way in (0, 1, 2):
        config["chat_template"] = source
    elif way == 3:
        files["chat_template.jinja"] = source.encode(errors="surrogatepass")
    elif way == 4:
        names = rng.choice([["default"], ["default", "tool_use"], ["a", "b"], [None, 1], ["default", "default"]])
        config["chat_template"] = [{"name": name, "template": source} for name in names]
    elif way == 5:
        files["chat_template.json"] = dumps(
            rng.choice([{"chat_template": TEMPLATE}, [], {"chat_template": 1}])
        ).encode()
        files["special_tokens_map.json"] = dumps(mutate_json({"bos_token": {"content": "<|end|>"}}, rng)[0]).encode()
    config, told = mutate_json(config, rng) if way >= 5 else (config, source)
    files["tokenizer_config.json"] = dumps(config).encode()
    if rng.random() < 0.15:
        name = rng.choice(sorted(files.keys() - {"tokenizer.json"}))
        files[name], damage = damaged_text(files[name].decode(errors="surrogatepass"), rng)
        told = f"{name} {damage}; {told}"
    return told[:300]


def _pattern(rng: random.Random) -> dict[str, Any]:
    expressions = [
        "a",
        "",
        "(a+)+$",
        "(?=x)",
        "[",
        "(?i)\\s+",
        "\\p{L}+",
        ".",
        "^",
        "(a|aa)*b",
        "x{0,60000}",
        "(?<=a)b",
    ]
    return {rng.choice(["String", "Regex"]): rng.choice(expressions)}


def _normalizer(rng: random.Random, depth: int = 0) -> Any:
    made: list[Callable[[], Any]] = [
        lambda: {
            "type": rng.choice(
                ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel", "Nothing"]
            )
        },
        lambda: {"type": "Replace", "pattern": _pattern(rng), "content": rng.choice(["", "b", "aa", "a" * 300])},
        lambda: {"type": "Prepend", "prepend": rng.choice(["", "▁", "a" * 1000])},
        lambda: {"type": "Strip", "strip_left": rng.choice([True, 1]), "strip_right": False},
        lambda: {"type": "Precompiled", "precompiled_charsmap": rng.choice(["", "AAAA", "/////w==", "!"])},
        lambda: {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True},
        lambda: {"type": "Sequence", "normalizers": [_normalizer(rng, depth + 1) for _ in range(rng.randrange(4))]},
        lambda: {"type": "Sequence", "normalizers": [_doubling(rng)] * rng.choice([3, 12, 30])},
    ]
    return rng.choice(made[: 8 if depth < 3 else 6])()


def _doubling(rng: random.Random) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": "a"}, "content": rng.choice(["a", "aa", "aab"])}


def _pre_tokenizer(rng: random.Random, depth: int = 0) -> Any:
    behaviour = rng.choice(["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous", "x"])
    made: list[Callable[[], Any]] = [
        lambda: {"type": "ByteLevel", "add_prefix_space": rng.choice([True, False]), "use_regex": True},
        lambda: {"type": "FixedLength", "length": rng.choice([0, 1, 5, 2**40, -1])},
        lambda: {"type": "Split", "pattern": _pattern(rng), "behavior": behaviour, "invert": rng.choice([True, False])},
        lambda: {"type": "Metaspace", "replacement": rng.choice(["▁", "", "ab"]), "prepend_scheme": "always"},
        lambda: {
            "type": rng.choice(["Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts", "Unknown"])
        },
        lambda: {"type": "Digits", "individual_digits": True},
        lambda: {"type": "Punctuation", "behavior": behaviour},
        lambda: {"type": "CharDelimiterSplit", "delimiter": rng.choice(["a", "", "ab"])},
        lambda: {"type": "Sequence", "pretokenizers": [_pre_tokenizer(rng, depth + 1) for _ in range(3)]},
    ]
    return rng.choice(made[: 9 if depth < 3 else 8])()


def _decoder(rng: random.Random, depth: int = 0) -> Any:
    count = rng.choice([0, 1, 3, 100, 2**40])
    made: list[Callable[[], Any]] = [
        lambda: {"type": rng.choice(["ByteLevel", "ByteFallback", "Fuse", "Nothing"])},
        lambda: {"type": "Strip", "content": rng.choice(["a", "", "ab"]), "start": count, "stop": count},
        lambda: {"type": "Replace", "pattern": _pattern(rng), "content": rng.choice(["", "a" * 1000])},
        lambda: {"type": "WordPiece", "prefix": rng.choice(["##", ""]), "cleanup": True},
        lambda: {"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": True},
        lambda: {"type": "BPEDecoder", "suffix": rng.choice(["", "</w>"])},
        lambda: {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        lambda: {"type": "Sequence", "decoders": [_decoder(rng, depth + 1) for _ in range(3)]},
    ]
    return rng.choice(made[: 8 if depth < 3 else 7])()


def _post_processor(rng: random.Random) -> Any:
    ids = rng.choice([[0], [2**31], [2**32 - 1], [-1], [], [0] * 5000])
    pieces = [
        {"SpecialToken": {"id": "<|begin|>", "type_id": rng.choice([0, 1, 2**31])}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    token = {"id": "<|begin|>", "ids": ids, "tokens": ["<|begin|>"] * rng.choice([0, 1, len(ids)])}
    tokens = rng.choice([{}, {"<|begin|>": token}])
    made = [
        {"type": "TemplateProcessing", "single": pieces * rng.choice([0, 1, 9]), "pair": [], "special_tokens": tokens},
        {"type": "ByteLevel", "trim_offsets": True},
        {"type": "BertProcessing", "sep": ["x", rng.choice([0, 2**40])], "cls": ["y", 1]},
        {"type": "Sequence", "processors": rng.choice([[], [{"type": "ByteLevel"}], [nested(200, "{")]])},
    ]
    return rng.choice(made)


def _added_token(rng: random.Random) -> dict[str, Any]:
    flags = {name: rng.choice([True, False]) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    identity = rng.choice([0, 3, 290, 300, 5000, 2**31, 2**32 - 1, 2**32, -1])
    return {"id": identity, "content": rng.choice(["", " ", "a", "And", "<|x|>", "\ud800", "a" * 5000, "é"]), **flags}


def mutate_tokenizer(data: bytes, rng: random.Random) -> tuple[bytes, list[str]]:
    """A changed tokenizer.json, and what was changed."""
    raw = json.loads(data)
    what = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        way = rng.randrange(10)
        if way < 4:
            part = ["normalizer", "pre_tokenizer", "decoder", "post_processor"][way]
            made = [_normalizer, _pre_tokenizer, _decoder, _post_processor][way](rng)
            raw[part] = made
            what.append(f"{part}: {dumps(made)[:120]}")
        elif way == 4:
            count = rng.choice([1, 1, 3, 50] if rng.random() < 0.95 else [20_000])
            made = [_added_token(rng) for _ in range(count)] if count < 20_000 else _many_tokens(count)
            raw["added_tokens"] = [*raw["added_tokens"], *made] if isinstance(raw["added_tokens"], list) else made
            what.append(f"{count} more added tokens: {dumps(made[0])[:100]}")
        elif way == 5:
            what.append(_mutate_model(raw, rng))
        elif way == 6:
            lengths = rng.choice([0, 1, 2**40, -1])
            raw["padding"] = {"strategy": rng.choice(["BatchLongest", {"Fixed": lengths}]), "direction": "Right"}
            raw["padding"] |= {"pad_to_multiple_of": rng.choice([None, 0, 8]), "pad_id": 0, "pad_type_id": 0}
            raw["padding"] |= {"pad_token": "x"}
            raw["truncation"] = {"max_length": lengths, "strategy": "LongestFirst", "stride": rng.choice([0, 9, 2**40])}
            raw["truncation"] |= {"direction": "Right"}
            what.append(f"padding and truncation to {lengths}")
        else:
            raw, told = mutate_json(raw, rng, ["Sequence", "BPE", "Unigram", "<|begin|>", "a"])
            what.append(told)
            if not isinstance(raw, dict) or not {"model", "added_tokens"} <= raw.keys():
                break
    text = dumps(raw)
    if rng.random() < 0.1:
        damaged, told = damaged_text(text, rng)
        return damaged, [*what, told]
    return text.encode(errors="surrogatepass"), what


def _many_tokens(count: int) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return [{"id": 400 + index, "content": f"token{index}", **flags} for index in range(count)]


def _mutate_model(raw: dict[str, Any], rng: random.Random) -> str:
    """Change the model of a tokenizer: what it knows, and how."""
    model = raw["model"]
    if not isinstance(model, dict):
        return "nothing"
    vocab = model.get("vocab")
    way = rng.randrange(6)
    if way == 0 and isinstance(vocab, dict) and vocab:
        name = rng.choice(list(vocab))
        vocab[name] = rng.choice([0, 1, 2**20, 2**31, 2**32 - 1, 2**32, -1, 1.5])
        return f"id of {name!r}: {vocab[name]}"
    if way == 1 and isinstance(model.get("merges"), list):
        pairs = [["a", "b"], ["zzz", "a"], "a b", "a", "", [], ["a"], ["", ""], [" ", " "], None]
        model["merges"] = [*model["merges"], rng.choice(pairs)] * rng.choice([1, 1, 20])
        return f"{len(model['merges'])} merges"
    if way == 2:
        model["unk_token"] = rng.choice([None, "zzz", "", "?", 5])
        model["unk_id"] = rng.choice([None, 0, 10**6, -1])
        return f"unknown token {model['unk_token']!r}, id {model['unk_id']}"
    if way == 3:
        model["dropout"] = rng.choice([0.0, 1.0, 2.0, Raw("NaN"), -1, 0.5])
        return f"dropout {model['dropout']}"
    if way == 4:
        given = {"byte_fallback": True, "fuse_unk": True, "ignore_merges": True, "max_input_chars_per_word": 0}
        given |= {"continuing_subword_prefix": "##", "end_of_word_suffix": "</w>"}
        name = rng.choice(list(given))
        model[name] = given[name]
        return f"{name}: {given[name]}"
    if isinstance(vocab, dict):
        kept = rng.sample(sorted(vocab), min(len(vocab), rng.choice([0, 1, 20, 250])))
        model["vocab"] = {name: vocab[name] for name in kept}
        return f"{len(kept)} tokens are left"
    if isinstance(vocab, list):
        model["vocab"] = rng.choice(
            [[], vocab[:1], [*vocab, ["a", Raw("1e400")]], [*vocab, ["x", -1e308]], [*vocab, ["y"]]]
        )
        return "other vocabulary"
    return "nothing"
