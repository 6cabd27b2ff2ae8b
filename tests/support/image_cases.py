"""Images and prompts with images for which it is recorded what transformers makes of them (transformers_images.py)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pictures import MODES, in_mode, picture
from PIL import Image
from tiny_tokenizers import with_images, write_tokenizer

__all__ = ["RECORD", "chats", "digest", "grid_cases", "pixel_cases", "prompts", "write_text_files"]

RECORD = Path(__file__).parents[1] / "runtimes" / "images" / "transformers.json"
"""What transformers makes of all cases."""

_SIZES = [
    *((1, 1), (1, 2), (2, 1), (1, 1000), (1000, 1), (3, 3), (5, 7), (336, 336), (337, 336), (336, 337), (335, 1009)),
    *((100, 50), (480, 640), (600, 800), (1080, 1920), (64, 1024), (4000, 300), (1500, 2000), (31, 2000), (672, 336)),
]
_SETTINGS: list[dict[str, Any]] = [
    {"size": {"height": 56, "width": 56}},
    {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]},
    {"resize_to_max_canvas": True},
    {"max_patches": 4, "resize_to_max_canvas": True},
    {"max_patches": 1},
]
_WORDS = ["the", " fox", "\n", "", " café", "<|eot|>", "日本", "  ", "user"]


def digest(values: Any) -> str:
    """The SHA-256 of an array's bytes, or of a JSON value."""
    data = values.tobytes() if isinstance(values, np.ndarray) else json.dumps(values).encode()
    return hashlib.sha256(data).hexdigest()


def pixel_cases() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Names, images (arrays or PIL images), and settings as preprocessor_config.json has them."""
    for height, width in _SIZES:
        yield f"{height} x {width}", picture(height, width), {}
    for mode in MODES:
        for height, width in ((1, 1), (40, 33), (200, 500), (400, 350)):
            yield f"{mode} {height} x {width}", in_mode(mode, height, width), {}
    for mode in ("1", "L", "P", "RGB"):
        image = in_mode(mode, 50, 40)
        image.info["transparency"] = {"RGB": image.getpixel((3, 3)), "P": bytes(range(256))}.get(mode, 255)
        yield f"transparent {mode}", image, {}
    for settings in _SETTINGS:
        for height, width in ((40, 90), (336, 200), (700, 500)):
            yield f"{json.dumps(settings)} {height} x {width}", picture(height, width), settings
    rng = random.Random(8)
    for _ in range(40):
        height, width, most = rng.randint(1, 700), rng.randint(1, 700), rng.randint(1, 20)
        yield f"{height} x {width} in {most}", picture(height, width), {"max_patches": most}


def grid_cases() -> Iterator[tuple[int, int, int, bool]]:
    """Heights, widths, numbers of tiles, and whether small images are enlarged as far as tiles go."""
    rng = np.random.default_rng(5)
    for height, width in np.exp(rng.uniform(0, 9.5, (3000, 2))).astype(int).tolist():
        yield height, width, int(rng.choice([1, 4, 16, 16])), bool(rng.random() < 0.3)
    yield 2695, 3069, 16, False


def write_text_files(directory: Path, chat_template: str) -> None:
    """The tokenizer of `with_images`, whose prompts `chats` and `prompts` are."""
    write_tokenizer(directory)
    with_images().save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(chat_template)


def chats() -> Iterator[tuple[list[dict[str, Any]], int | None, bool]]:
    """Messages, the most tiles of an image, and whether an answer is begun."""
    for seed in range(60):
        rng = random.Random(seed)
        roles = ["user", "assistant", "user"][: rng.randrange(1, 4)]
        chat: list[dict[str, Any]] = [{"role": role, "content": _content(rng)} for role in roles]
        if rng.random() < 0.3:
            chat.insert(0, {"role": "system", "content": [{"type": "text", "text": " Be brief. "}]})
        yield chat, rng.choice([None, 1, 4]), rng.random() < 0.5


def prompts() -> Iterator[tuple[str, list[Any]]]:
    """Texts with placeholders, and their images."""
    for seed in range(40):
        rng = random.Random(1000 + seed)
        images = [_image(rng) for _ in range(rng.randrange(1, 5))]
        pieces = _WORDS[: rng.randrange(6)] + ["<|image|>"] * len(images)
        yield "".join(rng.sample(pieces, len(pieces))), images


def _content(rng: random.Random) -> list[dict[str, Any]]:
    texts = [{"type": "text", "text": "".join(rng.choices(_WORDS, k=3))} for _ in range(rng.randrange(3))]
    images = [{"type": "image", "image": _image(rng)} for _ in range(rng.randrange(4))]
    return rng.sample(parts := texts + images, len(parts))


def _image(rng: random.Random) -> Image.Image:
    return Image.fromarray(picture(rng.choice([5, 56, 90, 200]), rng.choice([5, 56, 130, 400])))
