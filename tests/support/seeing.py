"""Tiny checkpoints and engines that see images, what they are fed, and what is wrong with some."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from pictures import picture
from safetensors.numpy import load_file, save_file

from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest
from l4export.runtimes.images.processor import ImageProcessor, ProcessedImages
from l4export.runtimes.images.prompt import ImageTokens, expand_images
from l4export.runtimes.text.codec import TextCodec
from l4export.storage.file_records import FileRecord
from workshop import copy_checkpoint, random_ids

PATCH = 236
"""The id of `<|patch|>`."""


def seeing_checkpoint(path: Path, variant: str = "scout") -> Path:
    """A tiny checkpoint with a tower, whose tiles have 16 x 16 pixels and 4 rows."""
    write_sample(path, variant, "tiny", seed=3, vision=True)
    return path


class Room:
    """Tiny checkpoints that see, and engines built from them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = cache(self._checkpoint)
        self.engine = cache(self._engine)

    def _checkpoint(self, variant: str) -> Path:
        return seeing_checkpoint(self.root / variant, variant)

    def _engine(self, variant: str, **options: Any) -> Path:
        path = self.root / f"engine-{len(list(self.root.iterdir()))}"
        build(self.checkpoint(variant), path, BuildOptions(**{"max_context": 128, **options}))
        return path


def changed(source: Path, target: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A checkpoint with one tensor changed."""
    copy_checkpoint(source, target)
    weights = load_file(target / "model.safetensors")
    weights[name] = np.ascontiguousarray(change(weights[name]))
    save_file(weights, target / "model.safetensors")
    return target


def reverse_features(engine: Path) -> None:
    """Make the decoder of an engine take its features from the last row to the first."""
    model = onnx.load(engine / "decoder.onnx", load_external_data=False)
    for node in model.graph.node:
        node.input[:] = ["reversed" if name == "image_features" else name for name in node.input]
    bounds = {"starts": [-1], "ends": [np.iinfo(np.int64).min], "axes": [0], "steps": [-1]}
    for name, values in bounds.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), f"reversed.{name}"))
    names = ["image_features", *(f"reversed.{name}" for name in bounds)]
    model.graph.node.insert(0, onnx.helper.make_node("Slice", names, ["reversed"]))
    sign(engine, "decoder.onnx", model.SerializeToString())


def sign(engine: Path, name: str, data: bytes) -> None:
    """Write a file of an engine, and let the manifest say that it is the one."""
    (engine / name).write_bytes(data)
    manifest = load_manifest(engine)
    record = FileRecord(len(data), hashlib.sha256(data).hexdigest())
    signed = dataclasses.replace(manifest, files={**manifest.files, name: record})
    (engine / "manifest.json").write_text(signed.to_json())


def processed(engine: Path) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """What stands for transformers' processor: tiles of pictures, and ids of a text with them."""
    codec, processor = TextCodec.open(engine), ImageProcessor.open(engine)
    assert codec is not None
    tokens = ImageTokens.of(codec.tokenizer, 4, PATCH)

    def made(pictures: Any, text: str = "<|image|>" * 3) -> tuple[np.ndarray, np.ndarray]:
        images = processor(pictures)
        return images.tiles, np.asarray(expand_images(codec.encode(text), images.grids, tokens))

    return made


def seen(engine: Path, sizes: list[tuple[int, int]], **options: Any) -> ProcessedImages:
    """Seeded pictures of these heights and widths."""
    return ImageProcessor.open(engine)([picture(*size) for size in sizes], **options)


def block(images: ProcessedImages, index: int) -> list[int]:
    """The tokens of an image, here written down by hand."""
    (rows, columns), tile = images.grids[index], [PATCH] * images.rows_of_a_tile
    line = [*([*tile, 228] * (columns - 1)), *tile, 229]
    return [230, *(line * rows if rows * columns > 1 else []), 234, *tile, 231]


def prompt(images: ProcessedImages, lengths: list[int], seed: int = 0) -> np.ndarray:
    """Texts of these lengths with the images between them."""
    texts = [random_ids(n, 230, seed + at).tolist() for at, n in enumerate(lengths)]
    blocks = [block(images, index) for index in range(len(images))]
    pairs = zip(texts, [*blocks, []], strict=True)
    return np.asarray([token for text, image in pairs for token in [*text, *image]])
