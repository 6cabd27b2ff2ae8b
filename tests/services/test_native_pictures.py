"""Pictures as the service in C++ decodes them, against the decoder of the one in Python."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import in_mode, picture
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from l4export.errors import InputError
from l4export.runtimes.images.decoding import decode
from native_service import compiled

pytestmark = pytest.mark.slow  # compiles the service's decoders


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = ("pictures", "png", "jpeg", "orientation")
    return compiled("pictures_program.cpp", sources, tmp_path_factory.mktemp("pictures"), "-lpng", "-ljpeg")


def read(program: Path, files: list[bytes]) -> list[dict[str, Any]]:
    asked = json.dumps([base64.b64encode(file).decode() for file in files])
    done = subprocess.run([program], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


def pixels(told: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(told["rgb"]), np.uint8).reshape(told["height"], told["width"], 3)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int, endian: str = "<", kind: int = 3) -> bytes:
    """EXIF data of one entry, of type SHORT (3) or LONG (4)."""
    head = struct.pack(f"{endian}2sHI", b"II" if endian == "<" else b"MM", 42, 8)
    value = struct.pack(f"{endian}H2x" if kind == 3 else f"{endian}I", orientation)
    return b"Exif\0\0" + head + struct.pack(f"{endian}HHHI", 1, 0x0112, kind, 1) + value + bytes(4)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/><tiff:Orientation>3</tiff:Orientation></x:xmpmeta>'


def jpegs() -> Iterator[tuple[str, bytes]]:
    for height, width in ((1, 1), (7, 9), (16, 16), (33, 50), (120, 77)):
        image = Image.fromarray(picture(height, width))
        for sampling, progressive in ((s, p) for s in ("4:4:4", "4:2:2", "4:2:0") for p in (False, True)):
            for quality in (30, 75, 98):
                options = {"subsampling": sampling, "progressive": progressive, "quality": quality}
                yield f"{height} x {width} {options}", saved(image, "JPEG", **options)
        for mode in ("L", "CMYK"):
            for progressive in (False, True):
                file = saved(in_mode(mode, height, width), "JPEG", progressive=progressive)
                yield f"{mode} {height} x {width} {progressive}", file
        yield "restarts", saved(image, "JPEG", restart_marker_rows=1)
        yield "RGB", saved(image, "JPEG", keep_rgb=True)
    for orientation in range(10):
        for endian, kind in (("<", 3), (">", 3), ("<", 4)):
            image, data = Image.fromarray(picture(20, 30)), exif(orientation, endian, kind)
            yield f"orientation {orientation} {endian} {kind}", saved(image, "JPEG", exif=data)
    whole = saved(Image.fromarray(picture(40, 30)), "JPEG")
    yield "more behind the end", whole + b"more"
    image = Image.fromarray(picture(20, 30))
    yield "XMP", saved(image, "JPEG", xmp=XMP)
    yield "XMP and EXIF", saved(image, "JPEG", xmp=XMP, exif=exif(8))
    yield (
        "XMP and EXIF of something else",
        saved(image, "JPEG", xmp=XMP, exif=exif(8).replace(b"\x12\x01", b"\x13\x01")),
    )


def pngs() -> Iterator[tuple[str, bytes]]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        for height, width in ((1, 1), (13, 9), (40, 33)):
            yield f"{mode} {height} x {width}", saved(in_mode(mode, height, width), "PNG")
    yield "16 bits", saved(Image.fromarray(picture(9, 8)[:, :, 0].astype(np.uint16) * 257 + 3), "PNG")
    palette = in_mode("P", 40, 33)
    yield "transparent colours", saved(palette, "PNG", transparency=bytes(range(256)))
    yield (
        "a transparent colour",
        saved(Image.fromarray(picture(9, 8)), "PNG", transparency=tuple(picture(9, 8)[3, 3].tolist())),
    )
    yield "a transparent grey", saved(in_mode("L", 9, 8), "PNG", transparency=100)
    for orientation in range(1, 9):
        yield f"orientation {orientation}", saved(in_mode("RGBA", 20, 30), "PNG", exif=exif(orientation))
    texts = PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
    yield "XMP", saved(in_mode("RGB", 20, 30), "PNG", pnginfo=texts)
    gamma = struct.pack(">I", 100_000)
    chunk = struct.pack(">I", 4) + b"gAMA" + gamma + struct.pack(">I", zlib.crc32(b"gAMA" + gamma))
    plain = saved(in_mode("RGBA", 20, 30), "PNG")
    yield "gamma", plain[:33] + chunk + plain[33:]


@pytest.mark.parametrize("files", [jpegs, pngs])
def test_pixels_are_those_of_pillow(program: Path, files: Any) -> None:
    """To the bit: Debian's libjpeg and Pillow's own are versions of libjpeg-turbo, whose exact arithmetic is one."""
    names, data = zip(*files(), strict=True)
    for name, file, told in zip(names, data, read(program, list(data)), strict=True):
        expected = decode(file, "image 1")
        assert "rgb" in told, (name, told)
        assert np.array_equal(pixels(told), expected), (name, np.abs(pixels(told).astype(int) - expected).max())


def refused_in_python(file: bytes) -> bool:
    try:
        decode(file, "image 1")
    except InputError:
        return True
    return False


def of_many_scans(count: int) -> bytes:
    """A file that has the last of its ten scans so many more times."""
    file = saved(Image.fromarray(picture(64, 64)), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    return file[:last] + count * file[last:-2] + file[last:]


def broken() -> Iterator[tuple[str, bytes]]:
    image = Image.fromarray(picture(40, 33))
    whole = [saved(image, "JPEG"), saved(image, "JPEG", progressive=True), saved(image, "PNG")]
    for number, file in enumerate(whole):
        for end in (*range(0, len(file) - 1, len(file) // 40), len(file) - 3, len(file) - 2, len(file) - 1):
            yield f"file {number} up to {end} of {len(file)}", file[:end]
    wide = whole[0].index(b"\xff\xc0") + 5
    yield "a large JPEG", whole[0][:wide] + b"\xff\xff\xff\xff" + whole[0][wide + 4 :]
    yield "12 bits", whole[0][: wide - 1] + b"\x0c" + whole[0][wide:]
    yield "2 layers", whole[0][: wide + 4] + b"\x02" + whole[0][wide + 5 :]
    head = struct.pack(">4sIIBBBBB", b"IHDR", 60_000, 60_000, 8, 2, 0, 0, 0)
    yield "a large PNG", whole[2][:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[2][33:]
    yield "a GIF without pictures", b"GIF89a" + b"\xff" * 20
    yield "100 scans", of_many_scans(90)
    yield "101 scans", of_many_scans(91)
    yield "very many scans", of_many_scans(10_000)
    yield "text", b"no picture at all"


def test_what_cannot_be_decoded_is_refused_as_in_python(program: Path) -> None:
    names, data = zip(*broken(), strict=True)
    results = read(program, list(data))
    assert "more than 100 scans" in results[names.index("101 scans")]["refused"]
    assert "rgb" in results[names.index("100 scans")]
    for name, file, told in zip(names, data, results, strict=True):
        assert refused_in_python(file) == ("refused" in told), (name, told.get("refused"))
        if "refused" in told:
            assert told["status"] == 400 and told["refused"].startswith("image 1: ") and "\n" not in told["refused"]


def test_formats_that_only_python_decodes_are_refused_by_name(program: Path) -> None:
    image = Image.fromarray(picture(9, 8))
    for told in read(program, [saved(image, kind) for kind in ("GIF", "BMP", "WEBP", "TIFF")]):
        assert "PNG, JPEG" in told["refused"]


def test_any_file_is_read(program: Path) -> None:
    """Whatever is made of pictures by changing bytes: without a fault, which the sanitizers would report."""
    chance, files = random.Random(0), []
    whole = [file for _, file in [*jpegs(), *pngs()] if len(file) < 4000]
    for _ in range(1500):
        file = bytearray(chance.choice(whole))
        for _ in range(chance.randrange(1, 6)):
            file[chance.randrange(len(file))] = chance.randrange(256)
        files.append(bytes(file))
    assert len(read(program, files)) == len(files)
