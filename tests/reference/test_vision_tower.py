"""The reference that sees: transformers' pieces, put together, are its whole model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from image_client import transformers_logits
from safetensors.numpy import load_file, save_file
from tiny_vision import pixels

from l4export.checkpoint import open_checkpoint
from l4export.checkpoint.sample import write_sample
from l4export.checkpoint.sample_vision import VISION_VARIANTS
from l4export.errors import EnvironmentLacks, InputError
from l4export.reference.image_processor import transformers_ids, transformers_tiles
from l4export.reference.transformers_model import HFReference
from l4export.reference.vision_tower import HFVisionTower
from workshop import assert_close, random_ids

IMAGE = 236


@pytest.mark.parametrize("variant", VISION_VARIANTS)
def test_the_pieces_are_the_whole_model(tmp_path: Path, variant: str) -> None:
    write_sample(tmp_path / "c", variant, "tiny", seed=3, vision=True)
    ids, tiles = random_ids(42, 230), pixels(3, 16)
    ids[12:20] = ids[30:34] = IMAGE
    expected = transformers_logits(tmp_path / "c", ids[None], tiles, tmp_path / "scratch")
    reference = HFReference(tmp_path / "c")
    plain = reference.logits(ids[None])
    reference.see(HFVisionTower(open_checkpoint(tmp_path / "c")).features(tiles), IMAGE)
    assert_close(reference.logits(ids[None]), expected, 2e-6)  # one tile at a time here, all of them there
    assert np.abs(plain - expected).max() > 0.1
    followed, _ = reference.routed(ids, ())
    assert_close(followed, expected[0], 2e-6)
    tokens = reference.greedy(ids.tolist(), 5)
    assert tokens[0] == expected[0, -1].argmax()
    # an image token after the images is one that was generated: its embedding counts
    again = reference.logits(np.array([[*ids, IMAGE, 7]]))
    assert_close(again[:, :42], expected, 2e-6)


def test_a_prompt_without_all_images_is_refused(tmp_path: Path) -> None:
    write_sample(tmp_path / "c", "guard", "tiny", seed=3, vision=True)
    reference = HFReference(tmp_path / "c")
    reference.see(np.zeros((4, reference.config.hidden_size), np.float32), IMAGE)
    with pytest.raises(InputError, match="4 rows of images for a prompt of 3 image tokens"):
        reference.logits(np.array([[1, IMAGE, IMAGE, IMAGE]]))


def test_a_tower_that_transformers_does_not_take_is_refused(tmp_path: Path) -> None:
    write_sample(tmp_path / "c", "guard", "tiny", seed=3, vision=True)
    weights = load_file(tmp_path / "c" / "model.safetensors")
    del weights["vision_model.class_embedding"]
    save_file(weights, tmp_path / "c" / "model.safetensors")
    with pytest.raises(InputError, match=r"refuses its vision tower .*class_embedding.*do not match"):
        HFVisionTower(open_checkpoint(tmp_path / "c"))
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    del config["vision_config"]
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="refuses its vision tower"):
        HFVisionTower(open_checkpoint(tmp_path / "c"))


def test_a_processor_that_cannot_run_says_so(tmp_path: Path) -> None:
    """transformers has it with torchvision alone."""
    if find_spec("torchvision"):
        pytest.skip("torchvision is here")
    write_sample(tmp_path / "c", "guard", "tiny", seed=3, vision=True)
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(EnvironmentLacks, match=r"Llama4ImageProcessor cannot be run here: .*Torchvision"):
        transformers_tiles(tmp_path / "c", [picture])
    with pytest.raises(EnvironmentLacks, match=r"Llama4Processor cannot be run here: "):
        transformers_ids(tmp_path / "c", "<|image|>", [picture])
