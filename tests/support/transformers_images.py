"""Records what transformers makes of `image_cases`: python tests/support/transformers_images.py

transformers' processor needs torchvision, which the tests' environment has not: beside a PyTorch for CPUs, the build of
the package index keeps transformers from being imported at all. Install it elsewhere, without what it depends on, and
name that folder in PYTHONPATH:

    pip install --no-deps --target FOLDER torchvision==0.28.0
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from image_cases import RECORD, chats, digest, grid_cases, pixel_cases, prompts, write_text_files

_TILE = 56


def main() -> None:
    """Write the record."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):  # importing torchvision needs these, and nothing here uses them
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    record = {"versions": _versions(), "pixels": _pixels(), "grids": _grids(), "ids": _ids()}
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    import PIL
    import torchvision
    import transformers

    return {module.__name__: str(module.__version__) for module in (transformers, torch, torchvision, PIL)}


def _pixels() -> dict[str, str]:
    """Of each case the grid, and the digest of its tiles as float32."""
    from transformers import Llama4ImageProcessor

    found = {}
    for name, image, settings in pixel_cases():
        process = Llama4ImageProcessor(**settings)
        done = process(images=[image], return_tensors="pt", input_data_format="channels_last")
        assert done["pixel_values"].dtype == torch.bfloat16
        tiles = done["pixel_values"].float().numpy()
        rows, columns = done["aspect_ratios"][0].tolist()
        found[name] = f"{rows} x {columns}: {digest(tiles)}"
    return found


def _grids() -> str:
    """The digest of grids and sizes on them, of all cases."""
    from transformers.image_utils import SizeDict
    from transformers.models.llama4 import image_processing_llama4 as definition

    found = []
    for height, width, most, fill in grid_cases():
        pages = torch.tensor(definition.find_supported_resolutions(most, SizeDict(height=336, width=336)))
        page = definition.get_best_fit((height, width), pages, fill)
        wanted = page if fill else (min(max(height, 336), page[0]), min(max(width, 336), page[1]))
        size = definition.get_max_res_without_distortion((height, width), wanted)
        found.append([[int(side) // 336 for side in page], [max(int(side), 1) for side in size]])
    return digest(found)


def _ids() -> dict[str, list[str]]:
    """The digests of all prompts' ids."""
    from transformers import AutoTokenizer, Llama4ImageProcessor, Llama4Processor
    from transformers.models.llama4.processing_llama4 import chat_template

    with tempfile.TemporaryDirectory() as directory:
        write_text_files(Path(directory), chat_template)
        tokenizer = AutoTokenizer.from_pretrained(directory)
    process = Llama4Processor(Llama4ImageProcessor(size={"height": _TILE, "width": _TILE}), tokenizer)
    of_chats = []
    for chat, most, generate in chats():
        limit = {"max_patches": most} if most else {}
        options = {"tokenize": True, "return_dict": True, "processor_kwargs": limit}
        ids = process.apply_chat_template(chat, add_generation_prompt=generate, **options)["input_ids"]
        of_chats.append(digest(ids[0] if isinstance(ids[0], list) else ids))
    of_prompts = [digest(process(text=text, images=images)["input_ids"][0]) for text, images in prompts()]
    return {"chats": of_chats, "prompts": of_prompts}


if __name__ == "__main__":
    main()
