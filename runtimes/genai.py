"""Prompts with images for onnxruntime-genai, which has no processor that makes Llama 4's tiles and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4export.errors import EnvironmentLacks, InputError

if TYPE_CHECKING:
    import onnxruntime_genai as og

    from l4export.runtimes.text.codec import TextCodec
    from l4export.runtimes.text.message_images import Fetch

__all__ = ["genai_inputs"]


def genai_inputs(
    engine: str | Path,
    messages: Sequence[Mapping[str, Any]],
    max_tiles: int | None = None,
    special_tokens_as_text: bool = False,
    fetch: Fetch | None = None,
    text: TextCodec | None = None,
    **variables: Any,
) -> og.NamedTensors:
    """Make of messages what `onnxruntime_genai.Generator.set_inputs` takes, for a generator that is empty.

    The tensors are `input_ids` int32 [1, tokens] and, where messages hold images, `pixel_values` float32
    [tiles, 3, T, T] and `num_image_tokens` int64 [1], the number of feature rows.

    Args:
        engine: The directory of an engine that sees images and has a genai_config.json.
        messages: As for `l4export.runtimes.engine.Engine.prepare`, and so are the other arguments but `text`.
        max_tiles: The most tiles into which an image is cut; None: as the checkpoint says.
        special_tokens_as_text: Whether special tokens that messages spell out stay text.
        fetch: Gets what a URL leads to.
        text: The engine's `TextCodec`, so that it is not opened for every prompt; None: it is.
        variables: What else `TextCodec.encode_messages` and the chat template take.

    Raises:
        InputError: an engine that sees no images or is not for onnxruntime-genai; messages that are refused, or what is
            no image.
        EnvironmentLacks: a package is missing.
        StorageError: a file cannot be read.
    """
    import numpy as np  # here, as helper processes import this package

    from l4export.engine.manifest import load_manifest
    from l4export.runtimes.arguments import a_path
    from l4export.runtimes.images.prepared_prompt import place_images
    from l4export.runtimes.text.codec import TextCodec

    try:
        import onnxruntime_genai as og
    except ImportError as error:
        raise EnvironmentLacks("inputs for onnxruntime-genai need it: pip install onnxruntime-genai") from error
    directory = a_path(engine, "engine")
    manifest = load_manifest(directory)
    if manifest.vision is None:
        raise InputError(f"{directory}: sees no images; give onnxruntime-genai the ids with append_tokens")
    if "genai_config.json" not in manifest.files:
        raise InputError(f"{directory}: has no genai_config.json; build it with --target ort-cpu --kv-layout static")
    codec = text or TextCodec.open(directory)
    if codec is None:
        raise InputError(f"{directory}: has no tokenizer.json, which messages need")
    ids, pictures = codec.encode_messages(
        messages, special_tokens_as_text=special_tokens_as_text, fetch=fetch, **variables
    )
    ids, images = place_images(directory, manifest.vision, codec, ids, pictures, max_tiles)
    tensors = og.NamedTensors()
    tensors["input_ids"] = np.asarray([ids], np.int32)
    if images:
        tensors["pixel_values"] = images.tiles
        tensors["num_image_tokens"] = np.asarray([sum(images.feature_rows)], np.int64)
    return tensors
