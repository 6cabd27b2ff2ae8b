"""`l4export run` with images and messages: what it says and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pictures import picture
from PIL import Image
from seeing import seeing_checkpoint

from l4export import runtimes
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with engines `see` and `blind`, and two pictures."""
    path = tmp_path_factory.mktemp("run")
    checkpoint = seeing_checkpoint(path / "c")
    build(checkpoint, path / "see", BuildOptions(max_context=128))
    build(checkpoint, path / "blind", BuildOptions(max_context=128, vision="none"))
    for name, size in (("a.png", (14, 30)), ("b.png", (9, 9))):
        Image.fromarray(picture(*size)).save(path / name)
    return path


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(place)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["run", *map(str, arguments), "--max-new-tokens", "4", "--threads", "1"])
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return call


def said(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


def test_images_stand_where_the_prompt_says(run: Run, place: Path) -> None:
    """The tokens are those of the engine in Python; without placeholders the images come first."""
    engine = runtimes.load(place / "see", threads=1)

    def due(*parts: str) -> list[int]:
        content = [
            {"type": "image", "path": str(place / part)} if part.endswith(".png") else {"type": "text", "text": part}
            for part in parts
        ]
        ids, images = engine.prepare([{"role": "user", "content": content}])
        return list(engine.generate(ids, 4, images=images))

    both = ("--image", "a.png", "--image", "b.png", "--json")
    mixed = said(run("see", "--prompt", "Is <|image|> like <|image|>?", *both))
    assert mixed["token_ids"] == due("Is ", "a.png", " like ", "b.png", "?")
    assert mixed["images"] == [{"tiles": 3, "tokens": 17}, {"tiles": 1, "tokens": 7}]
    # a tokenizer of bytes; 23 tokens are the template's
    assert mixed["prompt_tokens"] == 23 + len("Is  like ?") + 17 + 7 and mixed["tower_seconds"] > 0
    first = said(run("see", "--prompt", "Hi", *both))
    assert first["token_ids"] == due("a.png", "b.png", "Hi")
    assert said(run("see", "--prompt", "Hi", "--special-tokens-as-text", *both))["token_ids"] == first["token_ids"]
    assert said(run("see", "--prompt", "Hi", "--raw", "--max-tiles", 1, *both))["images"][0] == {
        "tiles": 1,
        "tokens": 7,
    }
    assert "images" not in said(run("see", "--prompt", "Hi", "--json"))


def test_messages_from_a_file(run: Run, place: Path) -> None:
    """Paths are relative to the file."""
    content = [{"type": "image", "path": "../a.png"}, {"type": "text", "text": "Hi"}]
    (place / "folder").mkdir(exist_ok=True)
    (place / "folder" / "m.json").write_text(json.dumps([{"role": "user", "content": content}]))
    got = said(run("see", "--messages", "folder/m.json", "--json"))
    assert got["token_ids"] == said(run("see", "--image", "a.png", "--prompt", "Hi", "--json"))["token_ids"]


def test_stats_say_how_long_the_tower_took(run: Run) -> None:
    code, _, err = run("see", "--prompt", "Hi", "--image", "a.png", "--stats")
    assert code == 0 and err.rstrip().endswith("s for 3 tiles")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["see", "--prompt", "Hi <|image|>"], "1 placeholders <|image|> for 0 images"),
        (["see", "--prompt", "<|image|> <|image|>", "--image", "a.png"], "2 placeholders <|image|> for 1 images"),
        (["see", "--prompt", "<|patch|>"], "spells <|patch|>"),
        (["see", "--prompt", "Hi", "--image", "none.png"], "none.png"),
        (["see", "--prompt", "Hi", "--image", "see/manifest.json"], "is no image"),
        (["see", "--prompt", "Hi", "--image", "a.png", "--max-tiles", 999999], "max_tiles"),
        (["see", "--prompt", "Hi", *["--image", "a.png"] * 9], "capacity"),
        (["see", "--token-ids", "236"], "1 image tokens"),
        (["see", "--token-ids", "1", "--image", "a.png"], "--image: goes with --prompt"),
        (["see", "--prompt", "Hi", "--raw", "--special-tokens-as-text", "--image", "a.png"], "leave one out"),
        (["blind", "--prompt", "Hi", "--image", "a.png"], "sees no images"),
        (["see", "--messages", "m.json"], "m.json: no such file"),
        (["see", "--messages", "a.png"], "a.png: not a JSON list of messages"),
        (["see", "--messages", "url.json"], "URLs are not followed"),
        (["see", "--messages", "url.json", "--raw"], "--raw: messages need the chat template"),
        (["see", "--messages", "url.json", "--prompt", "Hi"], "give one of --prompt"),
    ],
)
def test_bad_input_is_one_line(run: Run, place: Path, arguments: list[object], problem: str) -> None:
    content = [{"type": "image", "url": "https://example.com/a.png"}]
    (place / "url.json").write_text(json.dumps([{"role": "user", "content": content}]))
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert problem in err
