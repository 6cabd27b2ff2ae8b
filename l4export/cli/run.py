"""`l4export run`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l4export.cli.sampling_options import chosen_sampling, sampling_options
from l4export.errors import InputError

if TYPE_CHECKING:
    from l4export.runtimes.engine import Engine
    from l4export.runtimes.generation import Generation
    from l4export.runtimes.generation_record import GenerationRecord
    from l4export.runtimes.images.processor import ProcessedImages
    from l4export.runtimes.text.stop_strings import SpokenText

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
@click.option("--stop", "stops", metavar="TEXT", multiple=True, help="End before this text; may be repeated.")
@sampling_options
@click.option(
    "--logprobs",
    type=click.IntRange(min=0),
    metavar="N",
    help="With --json: the log probability of each token, and of the N likeliest.",
)
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
    stops: tuple[str, ...],
    logprobs: int | None,
    threads: int | None,
    verify: bool,
    stats: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Generate with ENGINE: text from --prompt or --messages, with images, or token ids from --token-ids."""
    from l4export import runtimes
    from l4export.cli.prompt_options import Prompt
    from l4export.runtimes.generation_record import GenerationRecord
    from l4export.runtimes.images.prepared_prompt import place_images
    from l4export.runtimes.text.codec import TextCodec

    given = Prompt(prompt, token_ids, messages, images, raw, special_tokens_as_text)
    given.check()
    if logprobs is not None and not as_json:
        raise InputError("--logprobs: are part of the JSON document; give --json")
    began = time.monotonic()
    with ThreadPoolExecutor(1) as background:  # a large tokenizer takes as long as a small engine
        text = background.submit(TextCodec.open, engine)
        loaded = runtimes.load(engine, threads, verify)
        codec = text.result()
    ids, pictures = given.encoded(codec, engine)
    seen = None
    if codec is not None and token_ids is None:
        ids, seen = place_images(engine, loaded.manifest.vision, codec, ids, pictures, max_tiles)
    load_seconds = time.monotonic() - began
    generation = loaded.generate(
        ids,
        max_new_tokens,
        chosen_sampling(loaded, sampling),
        stop_strings=stops,
        logprobs=logprobs,
        images=seen,
    )
    record = GenerationRecord(len(ids), load_seconds)
    tokens = record.follow(generation)
    if as_json:
        everything = list(tokens)
        click.echo(
            json.dumps(
                {
                    "token_ids": everything,
                    "text": None if codec is None else generation.text,
                    "finish_reason": generation.finish_reason,
                    **record.to_dict(),
                    **_of_images(loaded, seen),
                    **_of_logprobs(generation, logprobs),
                }
            )
        )
        return
    _print_stream(tokens, None if codec is None else generation.row.speak(codec))
    if stats:
        click.echo(_sentence(record, generation) + _image_clause(loaded, seen), err=True)


def _print_stream(tokens: Iterable[int], spoken: SpokenText | None) -> None:
    """Print tokens as they come: their text, or their ids where there is no tokenizer."""
    begun, given = False, 0
    try:
        for token in tokens:
            begun = True
            if spoken is None:
                click.echo(f"{token} ", nl=False)
            else:
                click.echo("".join(spoken.pieces[given:]), nl=False)
                given = len(spoken.pieces)
    except BaseException:
        if begun:
            click.echo()  # the error has a line of its own
        raise
    click.echo()


def _sentence(record: GenerationRecord, generation: Generation) -> str:
    figures = record.to_dict()
    return (
        f"{figures['prompt_tokens']} prompt tokens at {figures['prefill_tokens_per_second']} tokens/s, first token "
        f"after {figures['time_to_first_token_seconds']} s; {figures['new_tokens']} new tokens at "
        f"{figures['decode_tokens_per_second']} tokens/s; loaded in {figures['load_seconds']} s; ended by "
        f"{generation.finish_reason}"
    )


def _of_logprobs(generation: Generation, asked: int | None) -> dict[str, Any]:
    """Log probabilities for a JSON document, where they are asked for; JSON has no -Infinity, so that is null."""
    if asked is None:
        return {}

    def number(logprob: float) -> float | None:
        return round(logprob, 6) if math.isfinite(logprob) else None

    return {
        "logprobs": [
            {
                "token": each.token,
                "logprob": number(each.logprob),
                "top": [{"token": token, "logprob": number(logprob)} for token, logprob in each.top],
            }
            for each in generation.row.logprobs
        ]
    }


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
