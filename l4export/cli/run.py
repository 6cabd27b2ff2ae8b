"""`l4export run`."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l4export.errors import InputError

if TYPE_CHECKING:
    from l4export.runtimes.engine import Engine

__all__ = ["command"]


@click.command("run")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--prompt", help="Text; put into the chat template when the engine has one.")
@click.option("--raw", is_flag=True, help="Leave the chat template out: the prompt is continued as it is.")
@click.option("--token-ids", metavar="1,2,3", help="The prompt as token ids.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a call.  [default: one a core]")
@click.option("--verify", is_flag=True, help="Check every byte of the engine first.")
@click.option("--stats", is_flag=True, help="Speed and time to first token, on standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    engine: Path,
    prompt: str | None,
    raw: bool,
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

    if (prompt is None) == (token_ids is None):
        raise InputError("give either --prompt TEXT or --token-ids 1,2,3")
    started = time.monotonic()
    loaded = runtimes.load(engine, threads, verify)
    ids = _encode(loaded, prompt, raw) if prompt is not None else _parse_ids(str(token_ids))
    record = _Record(prompt_tokens=len(ids), load_seconds=time.monotonic() - started)
    stream = loaded.text.stream() if loaded.text is not None else None
    begun = time.monotonic()
    try:
        for token in loaded.generate(ids, max_new_tokens, temperature, top_p, seed):
            record.add(token, time.monotonic() - begun)
            piece = f"{token} " if stream is None else stream.push(token)
            if not as_json:
                click.echo(piece, nl=False)
    except BaseException:
        if record.tokens and not as_json:
            click.echo()  # what is then said of it has a line of its own
        raise
    tail = stream.flush() if stream is not None else ""
    record.finish_reason = _finish_reason(loaded, record, max_new_tokens)
    if as_json:
        text = loaded.text.decode(record.tokens) if loaded.text is not None else None
        click.echo(json.dumps({"token_ids": record.tokens, "text": text, **record.figures()}))
        return
    click.echo(tail)
    if stats:
        click.echo(record.sentence(), err=True)


@dataclass
class _Record:
    """What was generated, and when. Times in seconds; the first token's includes the prompt."""

    prompt_tokens: int
    load_seconds: float
    tokens: list[int] = field(default_factory=list)
    first_seconds: float = 0.0
    last_seconds: float = 0.0
    finish_reason: str = ""

    def add(self, token: int, seconds: float) -> None:
        if not self.tokens:
            self.first_seconds = seconds
        self.tokens.append(token)
        self.last_seconds = seconds

    def figures(self) -> dict[str, Any]:
        decoded, seconds = len(self.tokens) - 1, self.last_seconds - self.first_seconds
        prefill_speed = self.prompt_tokens / self.first_seconds if self.first_seconds else None
        decode_speed = decoded / seconds if decoded and seconds else None
        return {
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": len(self.tokens),
            "load_seconds": round(self.load_seconds, 4),
            "time_to_first_token_seconds": round(self.first_seconds, 4),
            "prefill_tokens_per_second": _rounded(prefill_speed),
            "decode_tokens_per_second": _rounded(decode_speed),
        }

    def sentence(self) -> str:
        figures = self.figures()
        return (
            f"{self.prompt_tokens} prompt tokens at {figures['prefill_tokens_per_second']} tokens/s, first token after "
            f"{figures['time_to_first_token_seconds']} s; {len(self.tokens)} new tokens at "
            f"{figures['decode_tokens_per_second']} tokens/s; loaded in {figures['load_seconds']} s; ended by "
            f"{self.finish_reason}"
        )


def _rounded(speed: float | None) -> float | None:
    return None if speed is None else round(speed, 2)


def _finish_reason(engine: Engine, record: _Record, max_new_tokens: int) -> str:
    if record.tokens and record.tokens[-1] in engine.config.eos_token_ids:
        return "stop token"
    return "max_new_tokens" if len(record.tokens) >= max_new_tokens else "max_context"


def _encode(engine: Engine, prompt: str, raw: bool) -> list[int]:
    codec = engine.text
    if codec is None:
        raise InputError(f"{engine.directory}: has no tokenizer.json; give --token-ids")
    if codec.has_chat_template and not raw:
        return codec.encode_chat([{"role": "user", "content": prompt}])
    return codec.encode(prompt)


def _parse_ids(text: str) -> list[int]:
    if not re.fullmatch(r"\s*-?[0-9]+\s*(,\s*-?[0-9]+\s*)*", text):
        raise InputError(f"--token-ids {text[:60]!r}: write whole numbers with commas between them, as in 1,2,3")
    return [int(item) for item in text.split(",")]
