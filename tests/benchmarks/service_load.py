"""How a service with OpenAI's interface bears many clients: against one client, and whether it says the same.

python examples/http_service engines/kjv &
python tests/benchmarks/service_load.py engines/kjv http://127.0.0.1:8000 --requests 500 --clients 32

Answers that differ are followed token by token in the engine, which rounds nothing below float32. They may depart from
it at near ties (tests/support/near_ties.py), which are counted; anything else ends this with exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

import l4export
from l4export.runtimes.engine import Engine

sys.path.append(str(Path(__file__).parents[1] / "support"))

from near_ties import departures

TEXT = Path(__file__).parents[2] / "examples/kjv/held_out.txt"


@dataclass(frozen=True)
class Told:
    """An answer: its text, the tokens in it, and the seconds to the first of them."""

    text: str
    tokens: int
    first_seconds: float


def requests(count: int, max_tokens: int) -> list[dict[str, Any]]:
    """Prompts of 1 to 60 words, every second one with a seed to draw with."""
    chance, words = random.Random(0), TEXT.read_text(encoding="utf-8").split()
    made = []
    for number in range(count):
        at = chance.randrange(len(words) - 60)
        drawn = {"temperature": 0.8, "seed": number} if number % 2 else {}
        made.append({"prompt": " ".join(words[at : at + chance.randint(1, 60)]), "max_tokens": max_tokens, **drawn})
    return made


async def ask(client: openai.AsyncOpenAI, model: str, request: dict[str, Any]) -> Told:
    """One request, streamed."""
    began, first, pieces, tokens = time.monotonic(), 0.0, [], 0
    stream = await client.completions.create(
        model=model, stream=True, stream_options={"include_usage": True}, **request
    )
    async for chunk in stream:
        first = first or time.monotonic() - began
        pieces += [choice.text for choice in chunk.choices]
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return Told("".join(pieces), tokens, first)


async def load(url: str, key: str, asked: list[dict[str, Any]], clients: int) -> tuple[list[Told], float]:
    """All requests from so many clients at once; the answers, and seconds."""
    waiting = iter(enumerate(asked))
    told: list[Told | None] = [None] * len(asked)

    async def one_client() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=600) as client:
            for number, request in waiting:
                told[number] = await ask(client, model, request)

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
        model = (await client.models.list()).data[0].id
    began = time.monotonic()
    await asyncio.gather(*(one_client() for _ in range(clients)))
    return [answer for answer in told if answer is not None], time.monotonic() - began


def figures(told: list[Told], seconds: float) -> dict[str, float]:
    """Throughput, and times to the first token."""
    times = sorted(answer.first_seconds for answer in told)
    return {
        "requests": len(told),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(sum(answer.tokens for answer in told) / seconds, 1),
        "first_token_p50_seconds": round(times[len(times) // 2], 4),
        "first_token_p99_seconds": round(times[min(len(times) - 1, len(times) * 99 // 100)], 4),
    }


def near_ties(engine: Engine, request: dict[str, Any], answers: tuple[Told, Told]) -> bool:
    """Whether two answers to one request that differ depart from the engine at near ties alone."""
    sampling = l4export.Sampling(temperature=request.get("temperature", 0), seed=request.get("seed"))
    try:
        for answer in answers:
            departures(engine, engine.text.encode(request["prompt"]), request["max_tokens"], sampling, answer.text)
    except AssertionError as error:
        print(f"{request}: {error}", file=sys.stderr)
        return False
    return True


def main() -> None:
    """Ask one by one, ask together, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path, help="that the service serves")
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--key", default="none")
    options = parser.parse_args()
    asked = requests(options.requests, options.max_tokens)
    alone, seconds = asyncio.run(load(options.url, options.key, asked, 1))
    together, less = asyncio.run(load(options.url, options.key, asked, options.clients))
    report = {"one_client": figures(alone, seconds), f"{options.clients}_clients": figures(together, less)}
    engine = l4export.load(options.engine, threads=1)
    pairs = zip(asked, zip(alone, together, strict=True), strict=True)
    differ = [near_ties(engine, request, pair) for request, pair in pairs if pair[0].text != pair[1].text]
    told = {"answers_that_differ": len(differ), "at_near_ties": sum(differ)}
    print(json.dumps({**report, "speedup": round(seconds / less, 2), **told}, indent=2))
    sys.exit(0 if all(differ) else 1)


if __name__ == "__main__":
    main()
