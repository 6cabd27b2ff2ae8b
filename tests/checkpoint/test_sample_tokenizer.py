"""The tokenizer of samples that see images: what it knows, and that transformers reads it alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import HARD, opened

from l4export.checkpoint.sample import hf_config
from l4export.checkpoint.sample_tokenizer import special_ids, write_tokenizer
from l4export.checkpoint.sample_vision import VISION_VARIANTS, whole_config
from l4export.runtimes.images.prompt import ImageTokens

CONTENT = [{"type": "text", "text": "Is "}, {"type": "image"}, {"type": "text", "text": " like "}, {"type": "image"}]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": CONTENT},
    {"role": "assistant", "content": "No."},
]


def config_of(variant: str, size: str) -> dict[str, Any]:
    return whole_config(hf_config(variant, size), variant, size)


@pytest.fixture(scope="module", params=["tiny", "full"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A directory with the files for a size, and its config.json."""
    path, config = tmp_path_factory.mktemp(request.param), config_of("scout", request.param)
    write_tokenizer(path, config)
    return path, config


def test_every_id_has_a_token_of_its_own(written: tuple[Path, dict[str, Any]]) -> None:
    path, config = written
    vocabulary = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(config["text_config"]["vocab_size"]))


def test_any_text_is_its_bytes(written: tuple[Path, dict[str, Any]]) -> None:
    codec = opened(written[0])
    text = HARD + "".join(map(chr, (*range(0x300), 0x7FF, 0x800, 0xFFFF, 0x10000, 0x10FFFF)))
    ids = codec.encode(text, add_special_tokens=False)
    assert len(ids) == len(text.encode()) and codec.decode(ids) == text
    assert codec.encode(text) == [written[1]["text_config"]["bos_token_id"], *ids]


def test_transformers_makes_the_same_prompts(written: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(written[0]), opened(written[0])
    for messages in (MESSAGES, MESSAGES[1:2]):
        rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ours.render_chat(messages) == rendered and rendered.count("<|image|>") == 2
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ours.encode_chat(messages) == expected
    assert theirs(HARD).input_ids == ours.encode(HARD)
    text = written[1]["text_config"]
    found = theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id
    assert found == (text["bos_token_id"], text["eos_token_id"][2], text["pad_token_id"])


@pytest.mark.parametrize("size", ["tiny", "bench"])
@pytest.mark.parametrize("variant", VISION_VARIANTS)
def test_special_tokens_are_those_of_the_config(variant: str, size: str, tmp_path: Path) -> None:
    config = config_of(variant, size)
    write_tokenizer(tmp_path, config)
    tokenizer = opened(tmp_path).tokenizer
    tokens = ImageTokens.of(tokenizer, 4, config["image_token_index"])
    assert (tokens.start, tokens.end) == (config["boi_token_index"], config["eoi_token_index"])
    names = "<|end_of_text|>", "<|eom|>", "<|eot|>"
    assert [tokenizer.token_to_id(name) for name in names] == config["text_config"]["eos_token_id"]
    assert all(tokenizer.encode(name, add_special_tokens=False).ids == [n] for name, n in special_ids(config).items())


def test_full_size_has_the_ids_of_the_released_tokenizer() -> None:
    assert special_ids(config_of("maverick", "full")) == {
        "<|begin_of_text|>": 200000,
        "<|end_of_text|>": 200001,
        "<|header_start|>": 200005,
        "<|header_end|>": 200006,
        "<|eom|>": 200007,
        "<|eot|>": 200008,
        "<|finetune_right_pad|>": 200018,
        "<|image_start|>": 200080,
        "<|image_end|>": 200081,
        "<|tile_x_separator|>": 200084,
        "<|tile_y_separator|>": 200085,
        "<|image|>": 200090,
        "<|patch|>": 200092,
    }
