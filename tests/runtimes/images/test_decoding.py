"""Pictures of all kinds into arrays: upright, on white; and what is refused, by name and before it costs anything."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import MODES, in_mode, picture
from PIL import Image, ImageOps

from l4export.errors import EnvironmentLacks, InputError
from l4export.runtimes.images import decoding
from l4export.runtimes.images.decoding import decode


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels_of(image: Any) -> NDArray[np.uint8]:
    return decode(image, "image 1")


def png_header(width: int, height: int) -> bytes:
    """A PNG of a size, whose pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


PHOTO = Image.fromarray(picture(37, 53))
FORMATS = {
    "PNG": encoded(PHOTO, "PNG"),
    "JPEG": encoded(PHOTO, "JPEG", quality=90),
    "progressive": encoded(PHOTO, "JPEG", progressive=True),
    "WEBP": encoded(PHOTO, "WEBP", quality=80),
    "BMP": encoded(PHOTO, "BMP"),
    "TIFF": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "PPM": encoded(PHOTO, "PPM"),
    "GIF": encoded(PHOTO, "GIF"),
}


@pytest.mark.parametrize("data", FORMATS.values(), ids=FORMATS)
def test_formats(tmp_path: Path, data: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    (tmp_path / "picture").write_bytes(data)
    for image in (data, bytearray(data), tmp_path / "picture", str(tmp_path / "picture"), Image.open(io.BytesIO(data))):
        assert np.array_equal(pixels_of(image), expected)


@pytest.mark.parametrize("data", FORMATS.values(), ids=FORMATS)
def test_a_file_that_ends_early_is_whole_or_refused(data: bytes) -> None:
    whole = pixels_of(data)
    for size in [*range(0, len(data), 1 + len(data) // 60), len(data) - 1]:
        try:
            assert np.array_equal(pixels_of(data[:size]), whole), size
        except InputError as error:
            assert str(error).startswith("image 1: ")
    with pytest.raises(InputError, match=r"cannot be decoded.*give a whole image file|no image in a format"):
        pixels_of(data[: len(data) // 2])


@pytest.mark.parametrize("mode", MODES)
def test_stripes_make_no_difference(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    image = in_mode(mode, 33, 21)
    whole = pixels_of(image)
    monkeypatch.setattr(decoding, "_STRIPE_PIXELS", 50)
    assert np.array_equal(pixels_of(image), whole)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_stand_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTO, format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright is not None
    assert np.array_equal(pixels_of(data), np.asarray(upright.convert("RGB")))
    assert pixels_of(data).shape == ((53, 37, 3) if orientation in (5, 6, 7, 8) else (37, 53, 3))


def test_what_is_transparent_shows_white() -> None:
    image = Image.new("RGBA", (2, 1), (200, 100, 0, 0))
    image.putpixel((1, 0), (200, 100, 0, 255))
    expected = [[[255, 255, 255], [200, 100, 0]]]
    assert pixels_of(encoded(image, "PNG")).tolist() == expected
    grey = Image.new("L", (2, 1), 7)
    grey.putpixel((1, 0), 9)
    assert pixels_of(encoded(grey, "PNG", transparency=7)).tolist() == [[[255] * 3, [9] * 3]]
    assert pixels_of(encoded(grey.convert("P"), "GIF", transparency=7))[0, 1].tolist() == [9] * 3


def test_the_first_frame_of_an_animation() -> None:
    others = [Image.fromarray(picture(37, 53, seed)) for seed in (1, 2)]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        alone = encoded(PHOTO, format, **{"lossless": True} if format == "WEBP" else {})
        options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
        assert np.array_equal(
            pixels_of(encoded(PHOTO, format, save_all=True, append_images=others, **options)), pixels_of(alone)
        )


def test_photos_of_several_pictures() -> None:
    """As some cameras write them: a JPEG with another one behind it."""
    data = encoded(PHOTO, "MPO", save_all=True, append_images=[Image.fromarray(picture(37, 53, 1))])
    assert np.array_equal(pixels_of(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_grey_of_16_bits_loses_its_lower_8() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    assert pixels_of(encoded(Image.fromarray(values), "PNG"))[..., 0].tolist() == [[0, 0, 1, 128, 255]]
    with pytest.raises(InputError, match="mode I;16, in which nothing says what is black"):
        pixels_of(encoded(Image.fromarray(values), "TIFF"))  # as likely to have 12 bits


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(dtype: Any) -> None:
    image = Image.fromarray(np.ones((3, 3), dtype))
    for given in (image, encoded(image, "TIFF")):
        with pytest.raises(InputError, match=r"image 1: has pixels of mode [FI], in which .*; scale them to 8 bits"):
            pixels_of(given)


def test_arrays_are_taken_as_they_are() -> None:
    array = picture(5, 4)
    assert pixels_of(array) is array


ARRAYS = [
    np.zeros((3, 4, 3), np.float32),
    np.zeros((3, 4, 3), np.int64),
    np.zeros((3, 4), np.uint8),
    np.zeros((3, 4, 4), np.uint8),
    np.zeros((3, 4, 1), np.uint8),
    np.zeros((1, 3, 4, 3), np.uint8),
    np.zeros((0, 4, 3), np.uint8),
    np.zeros((3, 0, 3), np.uint8),
    np.broadcast_to(np.zeros((), np.uint8), (1, 1 << 17, 3)),
    np.broadcast_to(np.zeros((), np.uint8), (50_000, 50_000, 3)),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype} {array.shape}")
def test_other_arrays_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(InputError, match=r"image 1: (is an array .*; give uint8 \[H, W, 3\]|has .* pixels, but)"):
        pixels_of(array)


OTHERS: dict[str, Any] = {
    "nothing": b"",
    "text": b"hello",
    "a picture drawn by a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "a web page's picture": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "50,000 by 50,000": png_header(50_000, 50_000),
    "8,193 by 8,192": png_header(8193, 8192),
    "too long": png_header(1 << 17, 1),
    "no size": png_header(0, 5),
    "no pixels": png_header(20, 20),
    "None": None,
    "a number": 7,
    "a list": [[0, 0, 0]],
    "an odd path": "a\0b",
}


@pytest.mark.parametrize("image", OTHERS.values(), ids=OTHERS)
def test_what_is_no_image_is_refused(image: Any) -> None:
    with pytest.raises(InputError, match=r"^image 1: .*; (give|convert|scale)") as caught:
        pixels_of(image)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("hello")
    for name, message in {
        "pipe": "not a regular file",
        "absent": "no such file",
        "text": "is no image in a format",
    }.items():
        with pytest.raises(InputError, match=f"{tmp_path / name}: {message}"):
            pixels_of(tmp_path / name)
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(InputError, match="not a regular file"):
            pixels_of(path)


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MOST_BYTES", 1 << 20)
    (tmp_path / "large").write_bytes(FORMATS["PNG"] + bytes(1 << 20))
    for image in (tmp_path / "large", (tmp_path / "large").read_bytes()):
        with pytest.raises(InputError, match=r"has .* bytes, and at most 1 MiB are read"):
            pixels_of(image)


def of_many_scans(count: int, **options: Any) -> bytes:
    """A file that has the last of its ten scans so many more times."""
    file = encoded(PHOTO, "JPEG", progressive=True, **options)
    last = file.rindex(b"\xff\xda")
    return file[:last] + count * file[last:-2] + file[last:]


def test_files_of_more_scans_than_are_worth_it(tmp_path: Path) -> None:
    """Scans in what a camera has written before and behind the picture do not count."""
    marks = 500 * b"\xff\xda\0\1"
    data = of_many_scans(90, comment=marks, icc_profile=marks) + marks
    assert np.array_equal(pixels_of(data), np.asarray(Image.open(io.BytesIO(data))))
    for count in (91, 5000):
        (tmp_path / "bomb").write_bytes(of_many_scans(count))
        for image in (tmp_path / "bomb", (tmp_path / "bomb").read_bytes()):
            with pytest.raises(InputError, match=f"has {count + 10} scans, and at most 100 are decoded"):
                pixels_of(image)


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    assert pixels_of(picture(2, 2)).shape == (2, 2, 3)
    with pytest.raises(EnvironmentLacks, match="image 1: images need the package pillow"):
        pixels_of(FORMATS["PNG"])
