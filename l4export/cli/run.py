"""`l4export run`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click

from l4export.errors import InputError

if TYPE_CHECKING:
    from l4export.runtimes.generation_record import GenerationRecord
    from l4export.runtimes.text.codec import TextCodec

__all__ = ["command"]


@click.command("run")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--prompt", help="The prompt as text. It is put into the chat template if the engine has one.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--special-tokens-as-text", is_flag=True, help="Special tokens that the prompt spells out stay text.")
@click.option("--token-ids", metavar="1,2,3", help="The prompt as token ids.")
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
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    threads: int | None,
    verify: bool,
    stats: bool,
    as_json: bool,
) -> None:
    """Generate with ENGINE: text from --prompt, token ids from --token-ids."""
    from l4export import runtimes
    from l4export.runtimes.generation_record import GenerationRecord
    from l4export.runtimes.text.codec import TextCodec

    if (prompt is None) == (token_ids is None):
        raise InputError("give either --prompt TEXT or --token-ids 1,2,3")
    began = time.monotonic()
    with ThreadPoolExecutor(1) as background:  # a large tokenizer takes as long as a small engine
        text = background.submit(TextCodec.open, engine)
        loaded = runtimes.load(engine, threads, verify)
        codec = text.result()
    if prompt is None:
        ids = _parse_ids(str(token_ids))
    elif codec is None:
        raise InputError(
            f"{engine}: has no tokenizer.json; give --token-ids, or put one into the checkpoint, as transformers' "
            "AutoTokenizer writes with save_pretrained, and build again"
        )
    else:
        ids = _encode(codec, prompt, raw, special_tokens_as_text)
    record = GenerationRecord(len(ids), max_new_tokens, loaded.config.eos_token_ids, time.monotonic() - began)
    tokens = record.follow(loaded.generate(ids, max_new_tokens, temperature, top_p, seed))
    if as_json:
        everything = list(tokens)
        decoded = None if codec is None else codec.decode(everything)
        click.echo(json.dumps({"token_ids": everything, "text": decoded, **record.to_dict()}))
        return
    _print_stream(tokens, codec)
    if stats:
        click.echo(_sentence(record), err=True)


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


def _encode(codec: TextCodec, prompt: str, raw: bool, special_tokens_as_text: bool) -> list[int]:
    if raw or not codec.has_chat_template:
        return codec.encode(prompt, special_tokens_as_text=special_tokens_as_text)
    if not codec.writes_user_text():
        raise InputError("chat template: it does not write what a user says; give --raw")
    message = {"role": "user", "content": prompt}
    return codec.encode_chat([message], special_tokens_as_text=special_tokens_as_text)


def _parse_ids(text: str) -> list[int]:
    if not re.fullmatch(r"\s*-?[0-9]+\s*(,\s*-?[0-9]+\s*)*", text):
        raise InputError(f"--token-ids {text[:60]!r}: write whole numbers with commas between them, as in 1,2,3")
    return [int(item) for item in text.split(",")]
