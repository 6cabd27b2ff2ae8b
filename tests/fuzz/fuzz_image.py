"""Class `image`: image files of several formats, arrays, settings of processors, and messages with images."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fuzz_case import Case, Subject
from fuzz_files import replace_file
from fuzz_json import damaged_text, dumps, mutate_json

__all__ = ["ImageSubject"]

_SETTINGS: dict[str, Any] = {
    "do_normalize": True,
    "do_rescale": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Llama4ImageProcessorFast",
    "image_std": [0.5, 0.5, 0.5],
    "max_patches": 16,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "resize_to_max_canvas": False,
    "size": {"height": 336, "width": 336},
}
_PROCESSOR: dict[str, Any] = {"image_token": "<|image|>", "patch_size": 14, "pixel_shuffle_ratio": 0.5}
_FORMATS: list[tuple[str, str, dict[str, Any]]] = [
    ("RGB", "PNG", {}),
    ("P", "PNG", {"transparency": 3}),
    ("I;16", "PNG", {}),
    ("1", "PNG", {}),
    ("RGBA", "PNG", {"pnginfo": True}),
    ("RGB", "JPEG", {"quality": 80}),
    ("RGB", "JPEG", {"progressive": True, "exif": True}),
    ("CMYK", "JPEG", {}),
    ("L", "JPEG", {"exif": True}),
    ("RGB", "WEBP", {"exif": True}),
    ("RGBA", "WEBP", {"lossless": True}),
    ("P", "GIF", {"save_all": True}),
    ("L", "GIF", {"transparency": 0}),
    ("RGB", "BMP", {}),
    ("P", "BMP", {}),
    ("RGB", "TIFF", {}),
    ("RGBA", "TIFF", {"compression": "tiff_lzw"}),
    ("L", "TIFF", {"compression": "jpeg"}),
    ("1", "TIFF", {"compression": "group4"}),
    ("F", "TIFF", {"compression": "tiff_adobe_deflate", "exif": True}),
    ("RGB", "PPM", {}),
    ("L", "PPM", {}),
]
_SIZES = [0, 1, 2, 0x7FFF, 0xFFFF, 0x10000, 50_000, 2**31 - 1, 2**31, 2**32 - 1]
_LARGE = [(8192, 8192), (9000, 9000), (65536, 1000), (65537, 10), (1, 65536), (50_000, 50_000), (3, 60_000)]
"""Sizes at and beyond the limits."""


class ImageSubject(Subject):
    """Images and settings, made into tiles and into prompts."""

    name = "image"
    seconds = 60.0  # the largest that are accepted take 5 seconds of a processor

    def prepare(self) -> None:
        """An image of each format."""
        for number, (mode, kind, options) in enumerate(_FORMATS):
            (self.valid / f"{number:02}.{kind.lower()}").write_bytes(_encoded(number, mode, kind, dict(options)))

    def begin(self) -> None:
        """Decode them all, and read them for the cases."""
        from l4export.runtimes.images.processor import ImageProcessor

        self.images = {path.name: path.read_bytes() for path in sorted(self.valid.iterdir())}
        ImageProcessor()([data for name, data in self.images.items() if ".tiff" not in name])

    def make(self, rng: random.Random, place: Path) -> Case:
        """Most cases are about a file, some about settings, arrays and messages."""
        way = rng.random()
        settings, processor, what = dict(_SETTINGS), dict(_PROCESSOR), []
        if way < 0.25:
            settings, told = mutate_json(settings, rng, [10**9, 0, -336, 1e-300, 16.0])
            what.append(f"preprocessor_config.json: {told}")
        elif way < 0.35:
            processor, told = mutate_json(processor, rng, [0, 0.3, 1e-9, {"image_processor": {}}])
            what.append(f"processor_config.json: {told}")
        text = dumps(settings).encode(errors="surrogatepass")
        if rng.random() < 0.05:
            text, told = damaged_text(text.decode(errors="replace"), rng)
            what.append(f"preprocessor_config.json: {told}")
        (place / "preprocessor_config.json").write_bytes(text)
        (place / "processor_config.json").write_bytes(dumps(processor).encode(errors="surrogatepass"))
        name = rng.choice(sorted(self.images))
        data = self.images[name]
        if way >= 0.3:
            data, told = _mutated(data, rng)
            what.append(f"{name}: {told}")
        if rng.random() < 0.01:
            width, height = rng.choice(_LARGE)
            data, name = _large(width, height), "large.png"
            what.append(f"{width} x {height}")
        path = place / name
        path.write_bytes(data)
        if rng.random() < 0.03:
            what.append(replace_file(path, rng))
        image = rng.choice([path, str(path), data, _part(path, data, rng)]) if rng.random() < 0.95 else _array(rng)
        what.append(f"given as {type(image).__name__}")
        return Case(lambda: _use(place, image), what)


def _encoded(number: int, mode: str, kind: str, options: dict[str, Any]) -> bytes:
    """A small picture with stripes."""
    from PIL import Image, PngImagePlugin

    grey = (np.add.outer(np.arange(40 + number), 3 * np.arange(60)) % 256).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) << 8)
    else:
        image = Image.fromarray(np.stack([grey, grey.T.ravel().reshape(grey.shape), 255 - grey], 2)).convert(mode)
    if options.get("exif"):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    if options.get("pnginfo"):
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("Comment", "x" * 500, zip=True)
    if options.get("save_all"):
        options["append_images"] = [image.rotate(90), image]
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _large(width: int, height: int) -> bytes:
    """A PNG of black and white of any size, whole up to a hundred million pixels."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = height if width * height < 10**8 else 1
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows * (1 + (width + 7) // 8)))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(data)) + kind + data + bytes(4) for kind, data in chunks]
    return _with_checksums(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def _mutated(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A file in which bytes, sizes or pieces are not what they were; a PNG's checksums are right again."""
    changed = bytearray(data)
    told = rng.choice(
        ["bytes changed", "bytes changed", "cut short", "a size", "a piece twice", "a piece less", "noise"]
    )
    at = rng.randrange(len(changed))
    if rng.random() < 0.6:
        at = rng.randrange(min(64, len(changed)))  # where formats say what follows
    match told:
        case "bytes changed":
            for _ in range(rng.choice([1, 2, 8, 60])):
                changed[min(len(changed) - 1, at + int(rng.expovariate(0.05)))] = rng.choice(
                    [0, 255, rng.randrange(256)]
                )
        case "cut short":
            del changed[rng.randrange(len(changed)) :]
        case "a size":
            form = rng.choice([">I", "<I", ">H", "<H"])
            size = rng.choice(_SIZES) % (1 << 8 * struct.calcsize(form))
            changed[at : at + struct.calcsize(form)] = struct.pack(form, size)
        case "a piece twice":
            piece = bytes(changed[at : at + rng.randrange(1, 400)])
            changed[at:at] = piece * rng.choice([1, 2, 100])
        case "a piece less":
            del changed[at : at + rng.randrange(1, 400)]
        case "noise":
            changed[at:] = rng.randbytes(len(changed) - at)
    return _with_checksums(bytes(changed)) if rng.random() < 0.8 else bytes(changed), told


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums, as far as they can be told apart."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    done, at = bytearray(data), 8
    while at + 12 <= len(done):
        size = int.from_bytes(done[at : at + 4], "big")
        if at + 12 + size > len(done):
            break
        done[at + 8 + size : at + 12 + size] = zlib.crc32(done[at + 4 : at + 8 + size]).to_bytes(4, "big")
        at += 12 + size
    return bytes(done)


def _part(path: Path, data: bytes, rng: random.Random) -> dict[str, Any]:
    """A part of a message that holds the image, or is said to."""
    values = [str(path), data, None, 5, "https://example.com/a.png", "data:image/png;base64,AAAA", [path], "\0"]
    keys = ["image", "path", "bytes", "base64", "url"]
    chosen = rng.sample(keys, rng.choice([1, 1, 1, 0, 2]))
    return {"type": rng.choice(["image", "image", "image", "video"]), **{key: rng.choice(values) for key in chosen}}


def _array(rng: random.Random) -> Any:
    shape = [rng.choice([0, 1, 3, 4, 40]) for _ in range(rng.choice([1, 2, 3, 3, 3, 4]))]
    if rng.random() < 0.5:
        shape = [rng.choice([1, 7, 400]), rng.choice([1, 9, 400]), 3]
    return np.ones(shape, rng.choice(["uint8", "uint8", "float32", "int16", "bool", "object", "complex64", "S3"]))


def _use(place: Path, image: Any) -> None:
    from l4export.runtimes.images.processor import ImageProcessor
    from l4export.runtimes.images.prompt import ImageTokens, expand_images
    from l4export.runtimes.images.tiling import tiles_of
    from l4export.runtimes.text.message_images import take_images

    processor = ImageProcessor.open(place)
    if isinstance(image, dict):
        _, images = take_images([{"role": "user", "content": [image]}])
    else:
        images = [image]
    done = processor(images)
    side, rows = processor.settings.tile, done.rows_of_a_tile
    assert done.tiles.shape == (sum(map(tiles_of, done.grids)), 3, side, side), "other tiles than grids"
    assert np.isfinite(done.tiles).all(), "tiles that are no numbers"
    ids = expand_images([1] * len(images), done.grids, ImageTokens(1, 2, 3, 4, 5, 6, rows))
    assert ids.count(4) == sum(done.feature_rows) == rows * len(done.tiles), "other tokens than features"
