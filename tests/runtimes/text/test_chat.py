"""Chat prompts, against transformers' `apply_chat_template`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from chat_cases import AS_PARTS, AS_TEXT, CHAT, FEATURES, FILES, LLAMA4, MIXED, NAMED, PARTS, SHOW, SPELLED, TEXT, TOOLS
from tiny_tokenizers import SPECIAL, byte_level, opened, templated, write_tokenizer

from l4export.errors import InputError
from l4export.runtimes.text.codec import TextCodec


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


def test_chat_is_that_of_llama_4(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(LLAMA4)
    codec = opened(directory)
    prompt = codec.render_chat([{"role": "system", "content": "Terse."}, {"role": "user", "content": "Hi"}])
    assert prompt == (
        "<|begin_of_text|><|header_start|>system<|header_end|>\n\nTerse.<|eot|>"
        "<|header_start|>user<|header_end|>\n\nHi<|eot|><|header_start|>assistant<|header_end|>\n\n"
    )
    ids = codec.encode_chat([{"role": "user", "content": "Hi"}])
    assert ids.count(0) == 1 and ids[:2] == [0, 2] and ids.count(4) == 1


def test_the_newest_form_of_files(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(LLAMA4)
    assert_as_transformers(directory)


def test_templates_see_what_they_see_in_transformers() -> None:
    special = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[4]}
    codec = TextCodec(byte_level(), FEATURES, special)
    chat = [*CHAT, {"role": "assistant", "content": "6", "thinking": "why", "x": None}]
    for name, source in FEATURES.items():
        reference = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), chat_template=source, **special)
        expected = reference.apply_chat_template(chat, tokenize=False)
        assert codec.render_chat(chat, add_generation_prompt=False, chat_template=name) == expected, name


def test_variables_prevail_over_special_tokens() -> None:
    codec = templated("{{ bos_token }}{{ date_string }}", bos_token="A")
    assert codec.render_chat([], date_string="today") == "Atoday"
    assert codec.render_chat([], bos_token="B") == "B"


# --- the places where transformers looks ----------------------------------------------------------------------------


def rewrite(directory: Path, name: str, value: Any) -> None:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def assert_as_transformers(directory: Path) -> None:
    """The same text and the same ids, for conversations of all kinds."""
    reference, codec = transformers.AutoTokenizer.from_pretrained(directory), opened(directory)
    texts = ["plain", "the <|eot|><|new|><extra>fox <|image|>", "<|begin_of_text|> <word> naïve"]
    for text in texts:
        ids = codec.encode(text)
        assert ids == reference(text)["input_ids"]
        assert codec.decode(ids) == reference.decode(ids, skip_special_tokens=True)
        assert codec.decode(ids, skip_special_tokens=False) == reference.decode(ids)
    for count, tools, generate in itertools.product(range(1, len(CHAT) + 1), TOOLS, [True, False]):
        options = {"add_generation_prompt": generate, "tools": tools}
        expected = reference.apply_chat_template(CHAT[:count], tokenize=False, **options)
        assert codec.render_chat(CHAT[:count], **options) == expected
        expected_ids = reference.apply_chat_template(CHAT[:count], return_dict=False, **options)
        assert codec.encode_chat(CHAT[:count], **options) == expected_ids


@pytest.mark.parametrize("files", FILES.values(), ids=FILES.keys())
def test_files_mean_what_they_mean_to_transformers(directory: Path, files: dict[str, Any]) -> None:
    for name, value in files.items():
        rewrite(directory, name, value)
    assert_as_transformers(directory)


def test_llama_4s_own_template(directory: Path) -> None:
    from transformers.models.llama4.processing_llama4 import chat_template

    rewrite(directory, "chat_template.jinja", chat_template)
    reference, codec = transformers.AutoTokenizer.from_pretrained(directory), opened(directory)
    calls = [{"type": "function", "function": {"name": "mul", "arguments": {"a": 6, "b": "é"}}}]
    chats = [
        [{"role": "user", "content": "Hi"}],
        [{"role": "system", "content": "Terse."}, {"role": "user", "content": " 6 · 7? "}],
        [
            {"role": "user", "content": [{"type": "text", "text": "Say"}, {"type": "text", "text": " it"}]},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "42"},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and this?"}]},
        ],
    ]
    for chat, tools, generate in itertools.product(chats, TOOLS[:2], [True, False]):
        options = {"add_generation_prompt": generate, "tools": tools, "date_string": "1 Jan"}
        assert codec.render_chat(chat, **options) == reference.apply_chat_template(chat, tokenize=False, **options)


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_the_templates_of_a_processor(directory: Path, name: str) -> None:
    rewrite(directory, name, {"chat_template": SHOW})
    assert opened(directory).render_chat(CHAT[:1]) == "<|begin_of_text|>system:  You are terse. <|eot|>"
    rewrite(directory, "chat_template.jinja", "mine")
    assert opened(directory).render_chat(CHAT[:1]) == "mine"


def test_an_engine_has_named_templates_without_a_folder(directory: Path) -> None:
    rewrite(directory, "chat_template.jinja", "D")
    rewrite(directory, "additional_chat_templates.tool_use.jinja", "T")
    codec = opened(directory)
    assert codec.render_chat(CHAT) == "D" and codec.render_chat(CHAT, tools=[]) == "T"
    assert codec.render_chat(CHAT, chat_template="tool_use") == "T"
    with pytest.raises(InputError, match="none called 'rag': name one of default, tool_use"):
        codec.render_chat(CHAT, chat_template="rag")


def test_templates_without_a_default(directory: Path) -> None:
    """transformers refuses to choose, too."""
    rewrite(directory, "tokenizer_config.json", {"chat_template": NAMED[:1]})
    codec = opened(directory)
    assert codec.render_chat([], tools=[]) == "T[]"
    with pytest.raises(InputError, match="none called 'default': name one of tool_use"):
        codec.render_chat([])
    with pytest.raises(InputError, match="there is none: give a plain prompt"):
        TextCodec(byte_level()).render_chat(CHAT)


def test_a_byte_order_mark_is_no_part_of_a_file(directory: Path) -> None:
    (directory / "tokenizer_config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"bos_token": "B"}).encode())
    (directory / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf{{ bos_token }}")
    tokenizer = (directory / "tokenizer.json").read_bytes()
    (directory / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + tokenizer)
    assert opened(directory).render_chat([]) == "B"


def test_the_padding_token_of_a_tokenizer(directory: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_padding(pad_token="<|eom|>", pad_id=5)
    tokenizer.save(str(directory / "tokenizer.json"))
    rewrite(directory, "tokenizer_config.json", {"chat_template": "{{ pad_token }}"})
    reference = transformers.AutoTokenizer.from_pretrained(directory)
    assert opened(directory).render_chat(CHAT) == reference.apply_chat_template(CHAT, tokenize=False) == "<|eom|>"


# --- contents as text and as parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [PARTS, TEXT, MIXED, TEXT.replace("trim", "upper | lower | capitalize")])
@pytest.mark.parametrize("messages", [AS_TEXT, AS_PARTS], ids=["text", "parts"])
def test_no_template_loses_what_is_said(source: str, messages: list[Any]) -> None:
    expected = "<system>Be brief.<user>Hello<assistant>Yes?<user>Bye"
    assert templated(source).render_chat(messages) == expected
    assert messages in (AS_TEXT, AS_PARTS)  # as they were


def test_parts_that_are_no_text_are_left_to_the_template() -> None:
    content = [{"type": "text", "text": "Hi"}, {"type": "image"}]
    assert "'image'" in templated("{{ messages[0].content }}").render_chat([{"role": "user", "content": content}])
    content = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]
    assert templated(TEXT).render_chat([{"role": "user", "content": content}]) == "<user>Hi\nyou"


def test_what_a_template_writes_is_known() -> None:
    assert templated(PARTS).writes_user_text() and templated(TEXT).writes_user_text()
    assert not templated("{{ bos_token }}").writes_user_text()
    assert not templated("{{ messages[0].text }}").writes_user_text()


# --- special tokens in a user's text --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SPELLED)
def test_special_tokens_can_stay_text(directory: Path, text: str) -> None:
    rewrite(directory, "chat_template.jinja", LLAMA4)
    codec, reference = opened(directory), transformers.AutoTokenizer.from_pretrained(directory)
    chat = [{"role": "user", "content": text}]
    ids = codec.encode_chat(chat, special_tokens_as_text=True)
    options = {"add_generation_prompt": True, "return_dict": False}
    assert ids == reference.apply_chat_template(chat, sanitize_control_tokens=True, **options)
    special = [token for token in ids if token < len(SPECIAL)]
    assert [SPECIAL[token] for token in special] == [SPECIAL[0], *(SPECIAL[2:4]), SPECIAL[4], *SPECIAL[2:4]]
    assert codec.encode_chat(chat) == reference.apply_chat_template(chat, **options)
    plain = codec.encode(text, special_tokens_as_text=True)
    assert plain[0] == 0 and not set(plain[1:]) & set(range(len(SPECIAL)))
    assert codec.decode(plain) == text
    assert codec.encode(text) != plain  # and afterwards they are tokens again


def test_what_cannot_stay_text_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    tokenizer.add_special_tokens(["<s>"])
    codec = TextCodec(tokenizer, {"default": "{{ messages[0].content }}"})
    for encode in (codec.encode, lambda text, **options: codec.encode_chat([{"content": text}], **options)):
        assert encode("<s>") == [0]
        with pytest.raises(InputError, match="makes the special token '<s>' of ordinary text"):
            encode("<s>", special_tokens_as_text=True)


@pytest.mark.parametrize("value", [{1: 2}, object(), print, {"a": [b"x"]}], ids=["key", "object", "function", "bytes"])
def test_values_that_are_no_json_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^date: a (value|key) is of type"):
        templated("x").render_chat([], date=value)
    with pytest.raises(InputError, match=r"^messages: "):
        templated("x").render_chat([value])
