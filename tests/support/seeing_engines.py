"""Tiny checkpoints with vision towers, engines built from them, and what is wrong with some."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import load_file, save_file
from tiny_tokenizers import IMAGE
from tokenizers import Tokenizer, models, pre_tokenizers

from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest
from l4export.runtimes.images.processor import ImageProcessor
from l4export.runtimes.images.prompt import ImageTokens, expand_images
from l4export.runtimes.text.codec import TextCodec
from l4export.storage.file_records import FileRecord
from workshop import copy_checkpoint


class Room:
    """Tiny checkpoints that see, and engines built from them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = cache(self._checkpoint)
        self.engine = cache(self._engine)

    def _checkpoint(self, variant: str) -> Path:
        write_sample(self.root / variant, variant, "tiny", seed=3, vision=True)
        return self.root / variant

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


def write_tokenizer(directory: Path) -> None:
    """A tokenizer of 256 words, among them the tokens of images, of which the model knows `<|patch|>`."""
    words = {f"w{index}": index for index in range(256)}
    for name, index in zip(IMAGE, (250, 230, 231, 236, 251, 252), strict=True):
        del words[f"w{index}"]
        words[name] = index
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(IMAGE)
    tokenizer.save(str(directory / "tokenizer.json"))


def processed(engine: Path) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """What stands for transformers' processor: tiles of pictures, and ids of a text with them."""
    codec, processor = TextCodec.open(engine), ImageProcessor.open(engine)
    assert codec is not None
    tokens = ImageTokens.of(codec.tokenizer, 4, 236)

    def made(pictures: Any, text: str = "<|image|>" * 3) -> tuple[np.ndarray, np.ndarray]:
        images = processor(pictures)
        return images.tiles, np.asarray(expand_images(codec.encode(text), images.grids, tokens))

    return made
