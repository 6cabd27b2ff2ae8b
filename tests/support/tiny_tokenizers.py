"""Small tokenizers, and directories that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from l4export.runtimes.text.codec import TextCodec

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>"]
IMAGE = [
    f"<|{name}|>" for name in ("image", "image_start", "image_end", "patch", "tile_x_separator", "tile_y_separator")
]
CORPUS = ["the quick brown fox, the dog; user system assistant ipython", "naïve café e\u0301", "日本語 🙂 👩‍🚀"] * 3
HARD = "the  fox 🙂👩‍🚀🇩🇪 e\u0301 \ufffd\ufffd  日本\n\n\t\x00 שלום" + "a" * 40


def byte_level(corpus: list[str] = CORPUS) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    begin = [(SPECIAL[0], 0)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=begin)
    return tokenizer


def with_images() -> Tokenizer:
    """The same with the tokens of images, as the last of its ids."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(IMAGE)
    return tokenizer


LLAMA4_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def like_llama4(corpus: list[str], size: int = 4000) -> Tokenizer:
    """A tokenizer that cuts and merges texts as Llama 4's does."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA4_PATTERN), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([*SPECIAL, *IMAGE])
    begin = [(SPECIAL[0], tokenizer.token_to_id(SPECIAL[0]))]
    template = processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=begin)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def write_tokenizer(directory: Path, **config: Any) -> Path:
    """Write the tokenizer of `byte_level`, and a tokenizer_config.json with begin and end of text and `config`."""
    directory.mkdir(parents=True, exist_ok=True)
    byte_level().save(str(directory / "tokenizer.json"))
    end = {"__type": "AddedToken", "content": SPECIAL[4], "normalized": False}
    tokens = {"bos_token": SPECIAL[0], "eos_token": end, "pad_token": None}
    (directory / "tokenizer_config.json").write_text(json.dumps({**tokens, **config}))
    return directory


def change_tokenizer(directory: Path, **parts: Any) -> None:
    """Replace parts of a directory's tokenizer.json."""
    path = directory / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def opened(directory: Path) -> TextCodec:
    """The codec of a directory that has a tokenizer."""
    codec = TextCodec.open(directory)
    assert codec is not None
    return codec


def templated(source: str, **special_tokens: str) -> TextCodec:
    """The tokenizer of `byte_level` with one chat template."""
    return TextCodec(byte_level(), {"default": source}, special_tokens)
