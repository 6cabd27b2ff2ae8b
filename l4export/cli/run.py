"""`l4export run`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from l4export.runtimes.engine import Engine
    from l4export.runtimes.generation_record import GenerationRecord
    from l4export.runtimes.images.processor import ProcessedImages
    from l4export.runtimes.text.codec import TextCodec

__all__ = ["command"]


@click.command("run")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--prompt", help="The prompt as text. It is put into the chat template if the engine has one.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--special-tokens-as-text", is_flag=True, help="Special tokens that the prompt spells out stay text.")
@click.option("--token-ids", metavar="1,2,3", help="The prompt as token ids.")
@click.option(
    "--messages",
    type=click.Path(path_type=Path),
    help="The prompt as a JSON file of messages; paths of their images are relative to it.",
)
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path),
    multiple=True,
    help="An image, for each <|image|> of the prompt in turn, or before it if it has none; may be repeated.",
)
@click.option(
    "--max-tiles", type=click.IntRange(min=1), help="The most tiles of an image.  [default: the checkpoint's]"
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Largest number of tokens to generate.",
)
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="Randomness of the sampling; 0 always takes the likeliest token.",
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Sample only from the likeliest tokens whose probabilities add up to this.",
)
@click.option("--seed", type=int, help="Seed of the sampling, which makes it repeatable.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a call.  [default: one a core]")
@click.option("--verify", is_flag=True, help="Check every byte of the engine before running it.")
@click.option("--stats", is_flag=True, help="Print speed and time to first token on standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    engine: Path,
    prompt: str | None,
    raw: bool,
    special_tokens_as_text: bool,
    token_ids: str | None,
    messages: Path | None,
    images: tuple[Path, ...],
    max_tiles: int | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    threads: int | None,
    verify: bool,
    stats: bool,
    as_json: bool,
) -> None:
    """Generate with ENGINE: text from --prompt or --messages, with images, or token ids from --token-ids."""
    from l4export import runtimes
    from l4export.cli.prompt_options import Prompt
    from l4export.runtimes.generation_record import GenerationRecord
    from l4export.runtimes.images.prepared_prompt import place_images
    from l4export.runtimes.text.codec import TextCodec

    given = Prompt(prompt, token_ids, messages, images, raw, special_tokens_as_text)
    given.check()
    began = time.monotonic()
    with ThreadPoolExecutor(1) as background:  # a large tokenizer takes as long as a small engine
        text = background.submit(TextCodec.open, engine)
        loaded = runtimes.load(engine, threads, verify)
        codec = text.result()
    ids, pictures = given.encoded(codec, engine)
    seen = None
    if codec is not None and token_ids is None:
        ids, seen = place_images(engine, loaded.manifest.vision, codec, ids, pictures, max_tiles)
    record = GenerationRecord(len(ids), max_new_tokens, loaded.config.eos_token_ids, time.monotonic() - began)
    tokens = record.follow(loaded.generate(ids, max_new_tokens, temperature, top_p, seed, images=seen))
    if as_json:
        everything = list(tokens)
        decoded = None if codec is None else codec.decode(everything)
        figures = {**record.to_dict(), **_of_images(loaded, seen)}
        click.echo(json.dumps({"token_ids": everything, "text": decoded, **figures}))
        return
    _print_stream(tokens, codec)
    if stats:
        click.echo(_sentence(record) + _image_clause(loaded, seen), err=True)


def _print_stream(tokens: Iterable[int], codec: TextCodec | None) -> None:
    """Print tokens as they come: their text, or their ids where there is no tokenizer."""
    stream, begun = None if codec is None else codec.stream(), False
    try:
        for token in tokens:
            begun = True
            click.echo(f"{token} " if stream is None else stream.push(token), nl=False)
    except BaseException:
        if begun:
            click.echo()  # the error has a line of its own
        raise
    click.echo("" if stream is None else stream.flush())


def _sentence(record: GenerationRecord) -> str:
    figures = record.to_dict()
    return (
        f"{figures['prompt_tokens']} prompt tokens at {figures['prefill_tokens_per_second']} tokens/s, first token "
        f"after {figures['time_to_first_token_seconds']} s; {figures['new_tokens']} new tokens at "
        f"{figures['decode_tokens_per_second']} tokens/s; loaded in {figures['load_seconds']} s; ended by "
        f"{figures['finish_reason']}"
    )


def _of_images(engine: Engine, images: ProcessedImages | None) -> dict[str, Any]:
    """Figures of the prompt's images for a JSON document; none where there are none."""
    if images is None or engine.features is None:
        return {}
    pairs = zip(images.tile_counts, images.token_counts, strict=True)
    each = [{"tiles": tiles, "tokens": tokens} for tiles, tokens in pairs]
    return {"images": each, "tower_seconds": round(engine.features.seconds, 4)}


def _image_clause(engine: Engine, images: ProcessedImages | None) -> str:
    figures = _of_images(engine, images)
    if not figures:
        return ""
    tiles = sum(image["tiles"] for image in figures["images"])
    return f"; of the time to the first token the vision tower took {figures['tower_seconds']} s for {tiles} tiles"
