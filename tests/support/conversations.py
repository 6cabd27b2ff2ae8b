"""A tiny checkpoint that sees, with a chat template of words, and files of conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pictures import picture
from PIL import Image
from seeing import PATCH, seeing_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers

USER, ASSISTANT, END = 200, 201, 202
"""Words that stand before and behind what is said."""

_IMAGE_IDS = {
    **{"tile_x_separator": 228, "tile_y_separator": 229, "image_start": 230, "image_end": 231},
    **{"image": 234, "patch": PATCH},
}

_TEMPLATE = """{%- for m in messages -%}{{ 'w200 ' if m.role == 'user' else 'w201 ' }}
{%- if m.content is string %}{{ m.content }}{% else %}{% for part in m.content -%}
{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}{{ ' w202 ' }}
{%- endfor %}{{ 'w201 ' if add_generation_prompt }}"""


def talking_checkpoint(path: Path, variant: str = "guard") -> Path:
    """`seeing_checkpoint`, with a tokenizer of words and a template that prompts for an answer; and two pictures."""
    seeing_checkpoint(path, variant)
    names = {f"<|{name}|>": number for name, number in _IMAGE_IDS.items()}
    vocabulary = {f"w{number}": number for number in range(256) if number not in names.values()} | names
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(names))
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").unlink(missing_ok=True)
    (path / "chat_template.jinja").write_text(_TEMPLATE)
    for name, size in (("a.png", (10, 12)), ("b.png", (20, 30))):
        Image.fromarray(picture(*size)).save(path.parent / name)
    return path


def words(count: int, seed: int) -> str:
    """Random words of the tokenizer, none of them special or of the template."""
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(1, 199, count))


def said(role: str, *content: str) -> dict[str, Any]:
    """A message of texts, and of images where a name ends as a picture's does."""
    parts = [
        {"type": "image", "path": item} if item.endswith(".png") else {"type": "text", "text": item} for item in content
    ]
    return {"role": role, "content": parts}


def write_conversations(path: Path, *conversations: list[dict[str, Any]]) -> Path:
    """A .jsonl file."""
    path.write_text("".join(json.dumps(messages) + "\n" for messages in conversations))
    return path


def shown_and_answered(path: Path, answer: int = 70) -> Path:
    """Two conversations: one picture of one tile, and two pictures of one and of seven in two turns."""
    first = [said("user", "a.png", words(5, 1)), said("assistant", words(answer, 2))]
    second = [said("user", "w9", "a.png"), said("assistant", words(answer, 3)), said("user", "b.png", words(3, 4))]
    return write_conversations(path, first, [*second, said("assistant", words(answer, 5))])
