"""Tiny engines that see images, with a tokenizer of 256 words, and what they are fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pictures import picture
from tokenizers import Tokenizer, models, pre_tokenizers

from l4export.checkpoint.sample import write_sample
from l4export.runtimes.images.processor import ImageProcessor, ProcessedImages
from workshop import random_ids

PATCH = 236
"""The id of `<|patch|>`."""
IMAGE_IDS = {"image_start": 230, "image_end": 231, "image": 232, "tile_x_separator": 233, "tile_y_separator": 234}
TEMPLATE = """{%- for m in messages -%}
{{ m.role + ' ' }}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content -%}
{{ '<|image|>' if part.type == 'image' else part.text }}{%- endfor %}{% endif %}
{%- endfor %}"""


def seeing_checkpoint(path: Path, variant: str = "scout") -> Path:
    """A tiny checkpoint with a tower, whose tiles have 16 x 16 pixels and 4 rows, and a tokenizer."""
    write_sample(path, variant, "tiny", seed=3, vision=True)
    words = {f"w{number}": number for number in range(256)}
    names = {f"<|{name}|>": number for name, number in {**IMAGE_IDS, "patch": PATCH}.items()}
    vocabulary = {word: number for word, number in words.items() if number not in names.values()} | names
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(names))
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def seen(engine: Path, sizes: list[tuple[int, int]], **options: Any) -> ProcessedImages:
    """Seeded pictures of these heights and widths."""
    return ImageProcessor.open(engine)([picture(*size) for size in sizes], **options)


def block(images: ProcessedImages, index: int) -> list[int]:
    """The tokens of an image, here written down by hand."""
    (rows, columns), tile = images.grids[index], [PATCH] * images.rows_of_a_tile
    line = [*([*tile, 233] * (columns - 1)), *tile, 234]
    return [230, *(line * rows if rows * columns > 1 else []), 232, *tile, 231]


def prompt(images: ProcessedImages, lengths: list[int], seed: int = 0) -> np.ndarray:
    """Texts of these lengths with the images between them."""
    texts = [random_ids(n, 230, seed + at).tolist() for at, n in enumerate(lengths)]
    blocks = [block(images, index) for index in range(len(images))]
    pairs = zip(texts, [*blocks, []], strict=True)
    return np.asarray([token for text, image in pairs for token in [*text, *image]])
