"""Prompts with images: the ids that `Llama4Processor` makes, as tests/support/transformers_images.py records them."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from image_cases import RECORD, chats, digest, prompts, write_text_files
from pictures import picture
from PIL import Image
from tiny_tokenizers import IMAGE, SPECIAL, opened, templated, with_images
from tokenizers import Tokenizer

from l4export.errors import InputError
from l4export.runtimes.images.processor import ImageProcessor
from l4export.runtimes.images.prompt import ImageTokens, expand_images
from l4export.runtimes.images.settings import ImageSettings
from l4export.runtimes.text.codec import TextCodec

SETTINGS = ImageSettings(tile=56)
PATCHES = SETTINGS.rows_of_a_tile
TOKENIZER = with_images()
ID = {name: TOKENIZER.token_to_id(name) for name in IMAGE}
TOKENS = ImageTokens.of(TOKENIZER, PATCHES, ID["<|patch|>"])
RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))["ids"]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    from transformers.models.llama4.processing_llama4 import chat_template

    directory = tmp_path_factory.mktemp("tokenizer")
    write_text_files(directory, chat_template)
    return opened(directory)


def expanded(codec: TextCodec, chat: Any, max_tiles: int | None = None, **options: Any) -> list[int]:
    ids, images = codec.encode_messages(chat, **options)
    return expand_images(ids, ImageProcessor(SETTINGS)(images, max_tiles).grids, TOKENS)


def test_ids_of_chats_are_those_of_transformers(codec: TextCodec) -> None:
    """With transformers' own chat template for Llama 4."""
    found = [expanded(codec, chat, most, add_generation_prompt=generate) for chat, most, generate in chats()]
    assert len(found) == 60 and list(map(digest, found)) == RECORDED["chats"]


def test_ids_of_prompts_are_those_of_transformers(codec: TextCodec) -> None:
    """Without a template, placeholders written in the text."""
    make = ImageProcessor(SETTINGS)
    found = [expand_images(codec.encode(text), make(images).grids, TOKENS) for text, images in prompts()]
    assert len(found) == 40 and list(map(digest, found)) == RECORDED["prompts"]


def test_the_tokens_of_an_image_as_released() -> None:
    tokens = ImageTokens(90, 80, 81, 92, 84, 85, ImageSettings().rows_of_a_tile)
    one, grid = tokens.block((1, 1)), tokens.block((2, 3))
    assert one == [80, 90, *[92] * 144, 81] and len(one) == 147
    assert len(grid) == 1017 and (grid.count(92), grid.count(84), grid.count(85)) == (1008, 4, 2)
    row = [*[92] * 144, 84, *[92] * 144, 84, *[92] * 144, 85]
    assert grid == [80, *row, *row, 90, *[92] * 144, 81]
    assert expand_images([1, 90, 2], [(1, 1)], tokens) == [1, *one, 2]
    assert len(expand_images([90] * 4, [(1, 1)] * 4, tokens)) == 4 * 147
    with pytest.raises(InputError, match=r"spells <\|image_start\|>"):
        expand_images([5, 0], [], ImageTokens(90, 0, 81, 92, 84, 85, 144))


@pytest.mark.parametrize(
    ("prompt", "images"), [("", 1), ("<|image|>", 0), ("<|image|> <|image|>", 1), ("x<|image|>", 2)]
)
def test_placeholders_and_images_match(codec: TextCodec, prompt: str, images: int) -> None:
    with pytest.raises(InputError, match=f"has {prompt.count('image')} placeholders .* for {images} images"):
        expand_images(codec.encode(prompt), [(1, 1)] * images, TOKENS)


@pytest.mark.parametrize("token", sorted(set(IMAGE) - {"<|image|>"}))
def test_tokens_that_only_images_have_are_refused(codec: TextCodec, token: str) -> None:
    chat = [
        {"role": "user", "content": [{"type": "image", "image": picture(5, 5)}, {"type": "text", "text": f"a{token}"}]}
    ]
    with pytest.raises(InputError, match=re.escape(f"prompt: spells {token}, which stands within images alone")):
        expanded(codec, chat)
    ids = expanded(codec, chat, special_tokens_as_text=True)  # where it stays text it does no harm
    assert ids.count(ID[token]) == TOKENS.block((1, 1)).count(ID[token])


def test_a_placeholder_that_a_user_spells(codec: TextCodec) -> None:
    text, image = {"type": "text", "text": "<|image|>"}, {"type": "image", "image": picture(5, 5)}
    for content in ([text], [text, image]):
        with pytest.raises(InputError, match=r"has \d placeholders"):
            expanded(codec, [{"role": "user", "content": content}])
        ids = expanded(codec, [{"role": "user", "content": content}], special_tokens_as_text=True)
        assert ids.count(ID["<|image_start|>"]) == len(content) - 1


def test_images_are_given_in_several_ways(codec: TextCodec, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(30, 40)).save(file, "PNG")
    data, path = file.getvalue(), tmp_path / "a.png"
    path.write_bytes(data)
    ways: list[dict[str, Any]] = [
        {"path": str(path)}, {"path": path}, {"image": str(path)}, {"bytes": data}, {"image": data}, {"image": path},
        {"image": picture(30, 40)}, {"base64": base64.b64encode(data).decode()}, {"url": "https://example.com/a"},
        {"image": "https://example.com/a"},
    ]  # fmt: skip
    content = [{"type": "image", **way} for way in ways]
    ids, images = codec.encode_messages([{"role": "user", "content": content}], fetch=lambda url: data)
    assert ids.count(ID["<|image|>"]) == len(ways)
    assert len(set(ImageProcessor(SETTINGS)(images).digests)) == 1


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({}, "has none of image, path, bytes"),
        ({"path": None}, "has none of image, path, bytes"),
        ({"path": "a", "bytes": b"b"}, "has path and bytes of"),
        ({"url": "https://example.com/a.png"}, "is at 'https.*URLs are not followed"),
        ({"image": "http://example.com/a.png"}, "URLs are not followed"),
        ({"base64": "?"}, "base64 is '.', which is none"),
        ({"base64": 5}, "base64 is 5, which is none"),
        ({"path": b"x"}, "path is of type bytes"),
        ({"bytes": "x"}, "bytes is of type str"),
    ],
)
def test_parts_without_an_image_are_refused(codec: TextCodec, part: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^image 1 of the messages: .*{message}"):
        codec.encode_messages([{"role": "user", "content": [{"type": "image", **part}]}])


def test_a_fetcher_gives_bytes(codec: TextCodec) -> None:
    content = [{"type": "image", "url": "https://example.com/a.png"}]
    with pytest.raises(InputError, match="fetch gave str and not bytes"):
        codec.encode_messages([{"role": "user", "content": content}], fetch=str)  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
@pytest.mark.parametrize("kind", ["video", "audio", "image_url", None])
def test_parts_that_the_template_leaves_out_are_refused(codec: TextCodec, role: str, kind: str | None) -> None:
    parts = [{"type": "text", "text": "See"}, {"type": kind, "path": "clip.mp4", "text": "<|eot|>"}]
    for encode in (codec.render_chat, codec.encode_chat, codec.encode_messages):
        with pytest.raises(InputError, match=f"leaves out parts of type '{kind}' in a message of '{role}'; correct"):
            encode([{"role": role, "content": parts}, {"role": "user", "content": "?"}])


def test_an_image_where_the_template_has_none_is_refused(codec: TextCodec) -> None:
    content = [{"type": "text", "text": "See"}, {"type": "image", "image": picture(5, 5)}]
    with pytest.raises(InputError, match="leaves out parts of type 'image' in a message of 'system'"):
        codec.encode_messages([{"role": "system", "content": content}, {"role": "user", "content": "?"}])
    text_alone = templated("{% for m in messages %}{{ m.content | trim }}{% endfor %}")
    with pytest.raises(InputError, match=r"has 0 placeholders .* for 1 images"):
        expanded(text_alone, [{"role": "user", "content": content}])


def test_ids_alone_would_lose_images(codec: TextCodec) -> None:
    chat = [{"role": "user", "content": [{"type": "image", "image": picture(5, 5)}]}]
    with pytest.raises(InputError, match="hold images, which ids alone would lose; use encode_messages"):
        codec.encode_chat(chat)
    placed = codec.encode_chat([{"role": "user", "content": [{"type": "image"}]}])  # the images are given elsewhere
    assert expand_images(placed, [(1, 1)], TOKENS) == expanded(codec, chat)


def test_tokenizers_without_the_tokens_of_images() -> None:
    tokenizer = Tokenizer.from_str(with_images().to_str())
    with pytest.raises(InputError, match=r"<\|patch\|> has the id .*, but image_token_index is 5"):
        ImageTokens.of(tokenizer, 4, 5)
    with pytest.raises(InputError, match=r"has no token <\|image\|>, which images need"):
        ImageTokens.of(templated("").tokenizer, 4, 5)
    assert len(SPECIAL) + len(IMAGE) == len(tokenizer.get_added_tokens_decoder())
