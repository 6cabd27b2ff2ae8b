"""Train the small Llama 4 with a vision tower on pictures that `scenes.py` draws: nothing is downloaded.

On one CPU thread (the malloc setting keeps large buffers from being mapped anew in every step):

    export OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1
    python train.py --output model --pictures pictures

Every picture is new. Those of step s have seeds from 1000 s on, and held-out ones have seeds from HELD_OUT on.

A model that learns to see from answers alone learns nothing for a long time. So the tower is helped in two ways. Its
patch embedding begins as the principal components of patches. And linear heads, which are thrown away afterwards, learn
from its features what is centred in which part of the picture (an auxiliary loss): the tower alone in the first steps,
and beside the answers in the others. An example for answers is a conversation about a picture, of several questions.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scenes import (
    COLOURS,
    HELD_OUT,
    KINDS,
    SHAPES,
    SIDE,
    Question,
    Scene,
    centres,
    draw,
    make_scene,
    questions,
    write_pictures,
)
from small_llama4 import PATCH, SPECIAL, make_config, make_tokenizer
from torch import nn
from transformers import GenerationConfig, Llama4ForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llama4.modeling_llama4 import Llama4Router

from l4export.checkpoint.sample_vision import write_processor
from l4export.runtimes.images.processor import ImageProcessor, ProcessedImages
from l4export.runtimes.images.prompt import ImageTokens
from l4export.runtimes.images.settings import ImageSettings

CELLS = SIDE // PATCH // 2
"""Feature rows of a tile in one direction."""
MOST_TILES = 4
PICTURES = 32
"""Of a step, and as many with conversations."""
QUESTIONS = 4
"""Of a training conversation."""


class Examples:
    """Makes batches: pictures as tiles, and conversations about them as ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.processor = ImageProcessor(ImageSettings(tile=SIDE, max_tiles=MOST_TILES))
        places = (SPECIAL.index(f"<|{name}|>") for name in (
            "image", "image_start", "image_end", "patch", "tile_x_separator", "tile_y_separator"
        ))  # fmt: skip
        self.tokens = ImageTokens(*places, rows_of_a_tile=CELLS**2)
        self.ids = cache(lambda text: tokenizer.encode(text, add_special_tokens=False))

    def conversation(self, grid: tuple[int, int], asked: list[Question]) -> tuple[list[int], list[int]]:
        """Ids, and labels: the ids of answers and of `<|eot|>` behind them, -100 elsewhere."""
        ids, labels = [0], [-100]
        for number, question in enumerate(asked):
            image = self.tokens.block(grid) if number == 0 else []
            prompt = [
                *self.ids("<|header_start|>user<|header_end|>\n\n"), *image,
                *self.ids(f"{question.text}<|eot|><|header_start|>assistant<|header_end|>\n\n"),
            ]  # fmt: skip
            answer = self.ids(f"{question.answer}<|eot|>")
            ids += prompt + answer
            labels += [-100] * len(prompt) + answer
        return ids, labels

    def batch(
        self, pictures: list[np.ndarray], asked: list[list[Question]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, ProcessedImages]:
        """Ids [B, T], labels [B, T] and pixel values [tiles, 3, SIDE, SIDE]."""
        images = self.processor(pictures)
        rows = [self.conversation(grid, some) for grid, some in zip(images.grids, asked, strict=True)]
        longest = max(len(ids) for ids, _ in rows)
        pad = len(SPECIAL) - 1
        ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
        labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
        return ids, labels, torch.from_numpy(images.tiles), images


def pictures_to_find_in(step: int) -> tuple[list[np.ndarray], torch.Tensor]:
    """Pictures of one tile, and what is centred where in each: int64 [2, B, CELLS * CELLS]."""
    scenes = [make_scene(1000 * step + 500 + place) for place in range(PICTURES)]
    return [draw(scene, SIDE) for scene in scenes], where(scenes)


def where(scenes: list[Scene]) -> torch.Tensor:
    """What is centred in which part of the picture: kinds and colours, int64 [2, B, CELLS * CELLS]."""
    return torch.from_numpy(np.stack([np.stack(centres(scene, CELLS)).reshape(2, -1) for scene in scenes], axis=1))


def conversations(step: int) -> tuple[list[np.ndarray], list[list[Question]], torch.Tensor]:
    """Pictures, questions about each, and what is centred where.

    Every eighth batch has fewer pictures, of other sizes than a tile's: most of them are cut into four tiles.
    """
    odd = step % 8 == 7
    rng = np.random.default_rng([step, 2])
    seeds = range(1000 * step, 1000 * step + (12 if odd else PICTURES))
    scenes = [make_scene(seed) for seed in seeds]
    pictures = [draw(scene, int(rng.integers(56, 225)) if odd else SIDE) for scene in scenes]
    asked = []
    for scene, seed in zip(scenes, seeds, strict=True):
        possible = questions(scene, seed)
        order = rng.permutation(len(possible))[:QUESTIONS]
        asked.append([possible[number] for number in order])
    return pictures, asked, where(scenes)


@torch.no_grad()
def begin_with_components(model: Llama4ForConditionalGeneration, examples: Examples) -> None:
    """Make the patch embedding the principal components of the patches of some pictures, of about equal variance."""
    pictures, _ = pictures_to_find_in(0)
    weight = model.vision_model.patch_embedding.linear.weight
    patches = F.unfold(torch.from_numpy(examples.processor(pictures).tiles), PATCH, stride=PATCH)
    patches = patches.transpose(1, 2).flatten(0, 1)  # [N, 3 * PATCH * PATCH]
    variances, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    variances, vectors = variances.flip(0)[: len(weight)], vectors.flip(1)[:, : len(weight)]
    weight.copy_((vectors / (variances + 1e-3 * variances[0]).sqrt()).T)


class Balance:
    """Collects what routers say, and gives the load-balancing loss of it: 1 when even, the number of experts at worst.

    The formula is that of the Switch Transformer: experts x sum over experts of (share of tokens x mean probability).
    """

    def __init__(self, model: Llama4ForConditionalGeneration) -> None:
        self.logits: list[torch.Tensor] = []
        for module in model.modules():
            if isinstance(module, Llama4Router):
                module.register_forward_hook(lambda _, __, output: self.logits.append(output[1]))

    def loss(self) -> torch.Tensor:
        """The mean over the layers of the last forward pass."""
        terms = []
        for logits in self.logits:
            share = F.one_hot(logits.argmax(-1), logits.shape[-1]).float().mean(0)
            terms.append(logits.shape[-1] * (share * logits.softmax(-1).mean(0)).sum())
        self.logits.clear()
        return torch.stack(terms).mean()


def learning_rate(step: int, steps: int, alone: int, peak: float) -> float:
    """Linear warm-up over 50 steps, for the tower and then again for the whole, and a cosine down to 1 % at the end."""
    warmup = min(1.0, (step % alone + 1) / 50) if step < 2 * alone else 1.0
    return peak * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(model: Llama4ForConditionalGeneration, examples: Examples, steps: int, alone: int, peak: float) -> None:
    """Train the model in place, in the first `alone` of the steps the tower only."""
    width = model.config.text_config.hidden_size
    heads = nn.ModuleList(nn.Linear(width, 1 + len(names)) for names in (SHAPES, COLOURS))
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    balance, start = Balance(model), time.monotonic()
    recent: list[list[float]] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, alone, peak)
        pictures, places = pictures_to_find_in(step)
        tiles = torch.from_numpy(examples.processor(pictures).tiles)
        whole, answers = (
            model.get_image_features(pixel_values=tiles, return_dict=True).last_hidden_state,
            torch.zeros(()),
        )
        if step >= alone:
            pictures, asked, more = conversations(step)
            ids, labels, tiles, images = examples.batch(pictures, asked)
            seen = model.get_image_features(pixel_values=tiles, return_dict=True)
            logits = model(input_ids=ids, mm_encoder_outputs={"image": seen}, use_cache=False).logits
            answers = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) + 0.01 * balance.loss()
            last = torch.tensor(images.tile_counts).cumsum(0) - 1  # of each picture the tile that shows all of it
            whole, places = torch.cat([whole, seen.last_hidden_state[last]]), torch.cat([places, more], dim=1)
        rows = model.multi_modal_projector(whole)
        shapes, colours = (
            F.cross_entropy(head(rows).flatten(0, 1), classes.flatten())
            for head, classes in zip(heads, places, strict=True)
        )
        auxiliary = 3 * shapes + colours  # shapes are harder to tell
        (answers + auxiliary).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append([answers.item(), auxiliary.item()])
        if (step + 1) % 50 == 0:
            told = ", ".join(f"{value:.4f}" for value in np.mean(recent, axis=0))
            print(f"step {step + 1}: {told}, {(time.monotonic() - start) / 60:.1f} min", flush=True)
            recent.clear()


@torch.no_grad()
def accuracy(
    model: Llama4ForConditionalGeneration, examples: Examples, pictures: int, side: int
) -> dict[str, tuple[int, int]]:
    """Right answers and questions by kind, each question on its own, of held-out pictures of one size.

    An answer is right if each of its tokens and the `<|eot|>` behind it is the likeliest: what is said greedily.
    """
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for first in range(HELD_OUT, HELD_OUT + pictures, 16):
        scenes = {seed: make_scene(seed) for seed in range(first, first + 16)}
        cases = [(draw(scene, side), one) for seed, scene in scenes.items() for one in questions(scene, seed)]
        ids, labels, tiles, _ = examples.batch([picture for picture, _ in cases], [[one] for _, one in cases])
        said = model(input_ids=ids, pixel_values=tiles, use_cache=False).logits.argmax(-1)[:, :-1]
        correct = ((said == labels[:, 1:]) | (labels[:, 1:] == -100)).all(1)
        asked.update(one.kind for _, one in cases)
        right.update(one.kind for (_, one), fine in zip(cases, correct.tolist(), strict=True) if fine)
    return {kind: (right[kind], asked[kind]) for kind in KINDS}


def save(model: Llama4ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the model folder in bf16, with the files of tokenizer, chat template and image processor."""
    half = Llama4ForConditionalGeneration(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    text = model.config.text_config
    half.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    half.save_pretrained(output)
    tokenizer.save_pretrained(output)
    write_processor(output, model.config.to_dict())
    # transformers 5 writes a class name that transformers 4 does not know; both know this one.
    edit_json(output / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    edit_json(output / "preprocessor_config.json", max_patches=MOST_TILES)


def edit_json(path: Path, **changes: object) -> None:
    """Change top-level fields of a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")


def main() -> None:
    """Read the arguments, train, save, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--pictures", type=Path, required=True, help="the folder to write a few held-out pictures to")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--alone", type=int, default=1200, help="of these the first, which train the tower alone")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    examples = Examples(tokenizer)
    model = Llama4ForConditionalGeneration(make_config(tokenizer))
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens", flush=True)
    write_pictures(args.pictures)
    begin_with_components(model, examples)
    train(model, examples, args.steps, args.alone, args.lr)
    save(model, tokenizer, args.output)
    model = Llama4ForConditionalGeneration.from_pretrained(args.output, dtype=torch.float32).eval()
    for side in (SIDE, 2 * SIDE):
        for kind, (right, asked) in accuracy(model, examples, 400, side).items():
            print(f"{side} pixels, {kind}: {right} of {asked}, {100 * right / asked:.1f} %", flush=True)


if __name__ == "__main__":
    main()
