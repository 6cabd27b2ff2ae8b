"""Images in messages: taken out of their parts, so that a template sees no more than where they stand."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from l4export.errors import InputError
from l4export.runtimes.arguments import shown

__all__ = ["Fetch", "has_images", "take_images"]

Fetch = Callable[[str], bytes]
"""Gets the bytes of the image at a URL."""

_SOURCES = ("image", "path", "bytes", "base64", "url")


def take_images(messages: Sequence[Any], fetch: Fetch | None = None) -> tuple[list[Any], list[Any]]:
    """Separate messages and their images.

    A part of an image is {"type": "image"} with one of `path`, `bytes`, `base64`, `url`, or `image`, which is anything
    that an image processor takes, or such a text.

    Args:
        messages: With contents of text or of parts; what is neither stays as it is.
        fetch: Gets what a URL leads to.

    Returns:
        The messages, with {"type": "image"} where an image was; and the images in their order.

    Raises:
        InputError: a part without an image or with several, a URL without `fetch`, or text that is not base64.
    """
    images: list[Any] = []

    def part_without_image(part: Any) -> Any:
        if not isinstance(part, Mapping) or part.get("type") != "image":
            return part
        images.append(_source(part, f"image {len(images) + 1} of the messages", fetch))
        return {"type": "image"}

    def without_images(message: Any) -> Any:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, list | tuple):
            return message
        return {**message, "content": [part_without_image(part) for part in content]}

    return [without_images(message) for message in messages], images


def has_images(messages: Sequence[Any]) -> bool:
    """Whether a part of some message holds an image; {"type": "image"} alone does not."""
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    images = [part for part in parts if isinstance(part, Mapping) and part.get("type") == "image"]
    return any(part.get(key) is not None for part in images for key in _SOURCES)


def _source(part: Mapping[str, Any], name: str, fetch: Fetch | None) -> Any:
    given = [key for key in _SOURCES if part.get(key) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise InputError(f"{name}: its part has {found} of {', '.join(_SOURCES)}; give one of them")
    key, value = given[0], part[given[0]]
    if key == "url" or (key == "image" and isinstance(value, str) and value.startswith(("http://", "https://"))):
        return _fetched(value, name, fetch)
    if key == "base64":
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise InputError(f"{name}: base64 is {shown(value)}, which is none; encode the image file") from None
    kinds = {"path": (str, Path), "bytes": (bytes, bytearray, memoryview)}.get(key, object)
    if not isinstance(value, kinds):
        raise InputError(f"{name}: {key} is of type {type(value).__name__}; give its part another key")
    return value


def _fetched(url: Any, name: str, fetch: Fetch | None) -> bytes:
    if fetch is None or not isinstance(url, str):
        raise InputError(
            f"{name}: is at {shown(url)}, and URLs are not followed; give its bytes, or a `fetch` function"
        )
    if not isinstance(data := fetch(url), bytes):
        raise InputError(f"{name}: fetch gave {type(data).__name__} and not bytes for {shown(url)}; correct it")
    return data
