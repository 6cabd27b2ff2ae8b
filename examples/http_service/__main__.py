"""Serve an engine to clients of OpenAI's interface: python examples/http_service ENGINE"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from app import Service, build_app
from l4export import runtimes
from l4export.errors import L4Error
from l4export.runtimes.serving import Batcher


class Server(uvicorn.Server):
    """Says where it listens, and ends with exit code 0 when it is told to end.

    Args:
        config: What it serves, and where.
        batcher: Whose answers may end before it does.
        grace: Seconds in which they may.
    """

    def __init__(self, config: uvicorn.Config, batcher: Batcher, grace: int) -> None:
        super().__init__(config)
        self._batcher = batcher
        self._grace = grace

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End in order at SIGTERM and SIGINT; a second SIGINT does not wait for answers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As the base, and one line on standard output."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers end; when the time is over, those that go on are cancelled, and their clients are told so."""
        closing = asyncio.create_task(asyncio.to_thread(self._batcher.close, self._grace))
        await super().shutdown(sockets)
        await asyncio.to_thread(self._batcher.close, 0)  # a second SIGINT waits for nothing
        await closing


def arguments() -> argparse.Namespace:
    """The command line."""

    def count(text: str) -> int:
        if (value := int(text)) < 1:
            raise ValueError
        return value

    parser = argparse.ArgumentParser(prog="http_service", description="Serves an engine; L4EXPORT_API_KEY is the key.")
    parser.add_argument("engine", type=Path, help="directory of an engine that has a tokenizer")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: one that is free")
    parser.add_argument("--model", help="name that clients give (default: that of the directory)")
    parser.add_argument("--rows", type=count, default=8, help="requests that are answered at the same time")
    parser.add_argument(
        "--capacity", type=count, help="tokens of prompt and answer (default: the engine's max_context)"
    )
    parser.add_argument("--waiting", type=count, default=64, help="requests that may wait for a row")
    parser.add_argument("--piece", type=count, default=128, help="prompt tokens between two steps")
    parser.add_argument(
        "--max-tokens", type=count, help="new tokens that a request may ask for (default: the capacity)"
    )
    parser.add_argument("--max-body", type=count, default=16 << 20, help="bytes of a request")
    parser.add_argument("--threads", type=count, help="of the CPU (default: one a core)")
    parser.add_argument("--grace", type=int, default=30, help="seconds in which answers may end at shutdown")
    return parser.parse_args()


async def serve(options: argparse.Namespace, service: Service) -> None:
    """Serve until a signal comes."""
    telling = 2  # seconds in which clients are told that their answers were cancelled
    config = uvicorn.Config(
        build_app(service),
        options.host,
        options.port,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=options.grace + telling,
    )
    server = Server(config, service.batcher, options.grace)
    await server.serve()
    if not server.started:
        raise SystemExit(3)


def main() -> None:
    """Load, and serve."""
    options = arguments()
    try:
        engine = runtimes.load(options.engine, options.threads)
        if engine.text is None:
            raise SystemExit(f"{options.engine}: has no tokenizer.json, which a service needs")
        model, key = options.model or options.engine.resolve().name, os.environ.get("L4EXPORT_API_KEY") or None
        with Batcher(engine, options.rows, options.capacity, options.waiting, options.piece) as batcher:
            most = options.max_tokens or batcher.capacity
            asyncio.run(serve(options, Service(engine, batcher, model, most, options.max_body, key)))
    except L4Error as error:
        print(f"http_service: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
