"""Draws pictures of shapes, and asks about them: everything follows from one number, the seed.

The pixels are computed here with NumPy, without a graphics library, so that they are the same with any version of one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HELD_OUT = 10**9
"""Seeds from here on are not trained on."""
SHOWN = (0, 4, 6, 10, 11, 15, 19)
"""Of the held-out pictures, those that `write_pictures` writes."""
SIDE = 112
"""Pixels of a picture's side where it fills one tile."""
SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (220, 35, 40),
    "green": (40, 160, 60),
    "blue": (35, 80, 220),
    "yellow": (245, 215, 30),
    "purple": (145, 45, 175),
    "orange": (250, 130, 20),
}
BACKGROUNDS = (255, 215, 15)
"""White, a light grey and nearly black."""

KINDS = {
    "shape": ("What shape is this?", "Which shape is this?"),
    "colour": ("What colour is the {shape}?", "What color is the {shape}?"),
    "which": ("Which shape is {colour}?", "What shape is {colour}?"),
    "count": ("How many {shape}s are there?", "How many {shape}s do you see?"),
    "all": ("How many shapes are there?", "How many shapes do you see?"),
    "exists": ("Is there {colour} {shape}?", "Do you see {colour} {shape}?"),
}
"""The kinds of questions, and how each may be put."""
SURE = ("shape", "colour", "count", "all")
"""Those that the trained model answers rightly; about the others it is often wrong."""


@dataclass(frozen=True)
class Thing:
    """A shape in a colour. Centre and radius are in units of the picture's side, the turn is in radians."""

    kind: str
    colour: str
    rgb: tuple[int, int, int]
    x: float
    y: float
    radius: float
    turn: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows: 1 to 4 shapes that do not touch, on a plain grey background."""

    background: int
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Question:
    """A question about a picture, of one of `KINDS`, and its only right answer."""

    kind: str
    text: str
    answer: str


def make_scene(seed: int) -> Scene:
    """The scene of a seed."""
    rng = np.random.default_rng([seed, 0])
    background = int(rng.choice(BACKGROUNDS)) + int(rng.integers(-15, 16))
    pool = rng.choice(SHAPES, rng.integers(1, 4), replace=False)  # few sorts, so that some are counted up to 4
    kinds = [str(kind) for kind in rng.choice(pool, rng.integers(1, 5))]
    things: list[Thing] = []
    for kind in kinds:
        things.append(_place(rng, kind, things, alone=len(kinds) == 1))
    return Scene(min(background, 255), tuple(things))


def _place(rng: np.random.Generator, kind: str, others: list[Thing], alone: bool) -> Thing:
    """A thing that keeps off the others, by trying."""
    low, high = (0.14, 0.3) if alone else (0.13, 0.18)
    while True:
        radius = rng.uniform(low, high)
        x, y = rng.uniform(radius + 0.01, 0.99 - radius, 2)
        if all(np.hypot(x - other.x, y - other.y) > radius + other.radius + 0.03 for other in others):
            break
    colour = str(rng.choice(list(COLOURS)))
    rgb = tuple(int(value) for value in np.clip(np.add(COLOURS[colour], rng.integers(-10, 11, 3)), 0, 255))
    return Thing(kind, colour, rgb, float(x), float(y), float(radius), float(rng.uniform(-0.2, 0.2)))


def draw(scene: Scene, side: int) -> NDArray[np.uint8]:
    """The picture of a scene, uint8 [side, side, 3], with smooth edges."""
    picture = np.full((side, side, 3), scene.background, np.float64)
    for thing in scene.things:
        left, right, top, bottom = (
            int(np.clip((centre + sign * 1.05 * thing.radius) * side + (sign > 0), 0, side))
            for centre in (thing.x, thing.y)
            for sign in (-1, 1)
        )
        u = (np.arange(left, right)[None, :] + 0.5) / side - thing.x
        v = (np.arange(top, bottom)[:, None] + 0.5) / side - thing.y
        cover = np.clip(0.5 - side * _distance(thing, u, v), 0, 1)[:, :, None]
        window = picture[top:bottom, left:right]
        window += cover * (np.asarray(thing.rgb) - window)
    return np.rint(picture).astype(np.uint8)


def _distance(thing: Thing, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far points [..] at u, v from a thing's centre lie outside it; negative inside."""
    if thing.kind == "circle":
        return np.hypot(u, v) - thing.radius
    edges, inside = {"triangle": (3, 0.5), "square": (4, 0.5**0.5)}[thing.kind]  # points lie on one side of all edges
    angles = thing.turn + np.pi / 2 + 2 * np.pi / edges * np.arange(edges)[:, None, None]
    return (u * np.cos(angles) + v * np.sin(angles)).max(axis=0) - inside * thing.radius


def questions(scene: Scene, seed: int) -> list[Question]:
    """One question of each kind that the scene answers in one way, put in words that the seed chooses."""
    rng = np.random.default_rng([seed, 1])

    def ask(kind: str, answer: str, **blanks: str) -> Question:
        return Question(kind, str(rng.choice(KINDS[kind])).format(**blanks), answer)

    kinds, colours = [thing.kind for thing in scene.things], [thing.colour for thing in scene.things]
    asked = [ask("all", str(len(kinds)))]
    asked += [ask("shape", kinds[0])] if len(kinds) == 1 else []
    if single := [thing for thing in scene.things if kinds.count(thing.kind) == 1]:
        chosen = single[rng.integers(len(single))]
        asked.append(ask("colour", chosen.colour, shape=chosen.kind))
    if single := [thing for thing in scene.things if colours.count(thing.colour) == 1]:
        chosen = single[rng.integers(len(single))]
        asked.append(ask("which", chosen.kind, colour=chosen.colour))
    shape = str(rng.choice(kinds if rng.random() < 0.8 else SHAPES))
    asked.append(ask("count", str(kinds.count(shape)), shape=shape))
    there = set(zip(colours, kinds, strict=True))
    shown = scene.things[rng.integers(len(scene.things))]
    colour, shape = shown.colour, shown.kind
    if rng.random() < 0.5:  # the answer is no: both are often there, but not together
        while (colour, shape) in there:
            colour = str(rng.choice(colours if rng.random() < 0.5 else list(COLOURS)))
            shape = str(rng.choice(kinds if rng.random() < 0.5 else SHAPES))
    article = "an" if colour == "orange" else "a"
    answer = "yes" if (colour, shape) in there else "no"
    return [*asked, ask("exists", answer, colour=f"{article} {colour}", shape=shape)]


def centres(scene: Scene, cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is centred in each of cells x cells parts of the picture: kinds and colours, [cells, cells], 0 for nothing.

    Kinds and colours are numbered from 1.
    """
    kinds, colours = np.zeros((2, cells, cells), np.int64)
    for thing in scene.things:
        place = int(thing.y * cells), int(thing.x * cells)
        kinds[place] = 1 + SHAPES.index(thing.kind)
        colours[place] = 1 + list(COLOURS).index(thing.colour)
    return kinds, colours


def write_pictures(folder: Path) -> None:
    """Write some held-out pictures, and `questions.jsonl`: in each line the messages of a question, and its answer."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in SHOWN:
        seed = HELD_OUT + number
        scene = make_scene(seed)
        Image.fromarray(draw(scene, SIDE)).save(folder / f"{number:02}.png", optimize=True)
        for question in questions(scene, seed):
            if question.kind not in SURE:
                continue
            content = [{"type": "image", "path": f"{number:02}.png"}, {"type": "text", "text": question.text}]
            line = {"kind": question.kind, "messages": [{"role": "user", "content": content}]}
            lines.append(json.dumps({**line, "answer": question.answer}) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines))
