"""Pictures as arrays: files of strangers decoded by Pillow, within limits.

A picture stands upright (EXIF), what is transparent shows white, of an animation the first frame counts. Where
transformers treats a PIL image and a file of the same picture alike, both are as this; where it does not, this is what
a person sees.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import EnvironmentLacks, InputError, L4Error, StorageError, one_line
from l4export.runtimes.images.jpeg_scans import count_scans
from l4export.storage.regular_files import open_regular

__all__ = ["Frame", "ImageSource", "decode"]

ImageSource = Any
"""A path, the bytes of a file, a PIL image, or an array uint8 [H, W, 3]."""

MOST_PIXELS = 1 << 26
"""Of an image; a gigabyte of memory suffices for these with all that is made of them."""

MOST_SIDE = 1 << 16
"""Pixels of an image in one direction."""

MOST_BYTES = 1 << 28
"""Of an image file."""

_MOST_SCANS = 100
"""Of a progressive JPEG file, which has about ten. Each takes as long as a pass over all pixels."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded. Pillow knows others, some of which run programs (EPS) or are seldom tested."""

_STRIPE_PIXELS = 1 << 22

_EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"}
_SIXTEEN_BITS = {"I;16", "I;16B"}

_ORIENTATION = 0x0112


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a video: an image that is given one tile unless more are asked for.

    Attributes:
        image: The picture, usually uint8 [H, W, 3].
        seconds: When it is shown; None where nobody knows.
    """

    image: ImageSource
    seconds: float | None = None


def decode(image: ImageSource, name: str) -> NDArray[np.uint8]:
    """Return the pixels of an image, uint8 [H, W, 3]; an array is returned as it is.

    Args:
        image: A path, the bytes of a file, a PIL image, or such an array.
        name: What messages call it, such as "image 2".

    Raises:
        InputError: it is no image, is damaged or too large, or has no 8-bit colours.
        EnvironmentLacks: Pillow is missing.
        StorageError: the file cannot be read.
    """
    if isinstance(image, np.ndarray):
        return _checked_array(image, name)
    try:
        from PIL import Image
    except ImportError:
        raise EnvironmentLacks(f"{name}: images need the package pillow: pip install pillow") from None
    if isinstance(image, Image.Image):
        with _refusing(name):
            return _pixels(image, name)
    if isinstance(image, bytes | bytearray | memoryview):
        if (size := memoryview(image).nbytes) > MOST_BYTES:
            raise _too_many_bytes(name, size)
        return _decode_file(io.BytesIO(image), name)
    if isinstance(image, str | os.PathLike) and isinstance(path := os.fspath(image), str) and "\0" not in path:
        with open_regular(Path(path), "give the path of an image") as file:
            if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
                raise _too_many_bytes(path, size)
            return _decode_file(file, path)
    what = "give a path, the bytes of a file, a PIL image, or an array uint8 [H, W, 3]"
    raise InputError(f"{name}: is of type {type(image).__name__}; {what}")


def _checked_array(pixels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        what = f"an array {pixels.dtype} {list(pixels.shape)}"
        raise InputError(f"{name}: is {what}; give uint8 [H, W, 3] with red, green and blue of 0 to 255")
    _check_size(pixels.shape[1], pixels.shape[0], name)
    return pixels


def _check_size(width: int, height: int, name: str) -> None:
    if not (1 <= width <= MOST_SIDE and 1 <= height <= MOST_SIDE and width * height <= MOST_PIXELS):
        most = f"a side has 1 to {MOST_SIDE} pixels, and the whole at most {MOST_PIXELS >> 20} million"
        raise InputError(f"{name}: has {width} x {height} pixels, but {most}; scale it")


def _too_many_bytes(name: str, size: int) -> InputError:
    return InputError(f"{name}: has {size} bytes, and at most {MOST_BYTES >> 20} MiB are read; give a smaller file")


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Make a refusal of whatever Pillow raises: its decoders raise nearly anything about damaged files."""
    try:
        yield
    except L4Error:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EIO:
            raise StorageError(f"{name}: cannot be read: {error.strerror}; check the disk") from None
        text = "".join(c if c.isprintable() else "?" for c in one_line(error, OSError, SyntaxError))
        raise InputError(f"{name}: cannot be decoded ({text}); give a whole image file") from None


def _decode_file(file: io.BytesIO | io.BufferedReader, name: str) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    with _refusing(name):
        try:
            image = Image.open(file, formats=_FORMATS)
        except UnidentifiedImageError:
            known = ", ".join(_FORMATS)
            raise InputError(f"{name}: is no image in a format that is decoded ({known}); convert it") from None
        with image:
            if image.info.get("progressive"):
                _check_scans(file, name)
            return _pixels(image, name)


def _check_scans(file: io.BytesIO | io.BufferedReader, name: str) -> None:
    at = file.tell()
    file.seek(0)
    count = count_scans(file.read())
    file.seek(at)
    if count > _MOST_SCANS:
        raise InputError(f"{name}: has {count} scans, and at most {_MOST_SCANS} are decoded; save it anew")


def _pixels(image: Any, name: str) -> NDArray[np.uint8]:
    """Decode a PIL image, a stripe at a time after its format's own decoder; its size is looked at before."""
    _check_size(image.width, image.height, name)
    image.load()
    if not (image.mode in _EIGHT_BITS or _is_grey_of_16_bits(image)):
        what = f"has pixels of mode {image.mode}, in which nothing says what is black and what is white"
        raise InputError(f"{name}: {what}; scale them to 8 bits")
    orientation = image.getexif().get(_ORIENTATION, 1)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    step = max(1, _STRIPE_PIXELS // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        pixels[top:bottom] = _colours(image.crop((0, top, image.width, bottom)))
    return _upright(pixels, orientation)


def _is_grey_of_16_bits(image: Any) -> bool:
    """Whether values go from 0 to 65535: those of a PNG do, in a TIFF they may as well have 12 bits."""
    return image.mode in _SIXTEEN_BITS and image.format == "PNG" and not image.has_transparency_data


def _colours(image: Any) -> NDArray[np.uint8]:
    """Red, green and blue of a PIL image, transparent parts on white, [H, W, 3]; of 16 bits the higher 8, [H, W, 1]."""
    from PIL import Image

    if image.mode in _SIXTEEN_BITS:
        return (np.asarray(image) >> 8).astype(np.uint8)[:, :, None]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _upright(pixels: NDArray[np.uint8], orientation: Any) -> NDArray[np.uint8]:
    """Turn and mirror as EXIF's orientation says; values that it does not define change nothing, as in Pillow."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
