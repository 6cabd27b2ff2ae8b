"""HTTP services with OpenAI's interface: how each is started, and what is asked of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
from safetensors.numpy import load_file, save_file
from tiny_tokenizers import byte_level

from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from native_service import native_service
from workshop import ROOT, copy_checkpoint, edit_config

SERVERS: dict[str, Callable[[], list[str]]] = {
    "python": lambda: [sys.executable, str(ROOT / "examples/http_service")],
    "cpp": native_service,
}
"""The beginning of each service's command line; what follows is the same for all. Called when one is needed, as it may
have to be built."""

TEMPLATE = """{{- bos_token }}
{%- if tools %}{{- 'Tools: ' + (tools | tojson) + '\n' }}{% endif %}
{%- for message in messages %}
    {{- message['role'] + ': ' }}
    {%- if message['content'] is string %}{{- message['content'] }}{% endif %}
    {%- for call in message.tool_calls or [] %}{{- call.function | tojson }}{% endfor %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant:\n' }}{% endif %}
"""

CALL = '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}'
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


class Service:
    """A service that runs."""

    def __init__(self, process: subprocess.Popen[str], url: str, model: str) -> None:
        self.process = process
        self.url = url
        self.model = model

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and body."""
        return self._asked(urllib.request.Request(self.url + path, headers=headers))

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
        """Status, and what the body says as JSON."""
        headers = {"Content-Type": "application/json", **headers}
        status, text = self._asked(urllib.request.Request(self.url + path, body, headers))
        return status, json.loads(text)

    def metrics(self) -> dict[str, float]:
        """Of /metrics, by name and labels as they stand there."""
        lines = (line.rsplit(" ", 1) for line in self.get("/metrics")[1].splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def wait_until_idle(self) -> None:
        """Until no request has a row or waits."""
        wait_for(lambda: not any(self.metrics()[f"l4export_{name}_requests"] for name in ("running", "waiting")))

    def resident_bytes(self) -> int:
        """Memory of the process."""
        (pages,) = re.findall(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text(), re.M)
        return int(pages) * 1024

    def _asked(self, request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@contextmanager
def running(server: str, engine: Path, *options: str, key: str | None = None) -> Iterator[Service]:
    """A service on an engine, until the block ends; then it is told to end, and must."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({} if key is None else {"L4EXPORT_API_KEY": key})
    command = [*SERVERS[server](), str(engine), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        yield Service(process, line.split()[-1], engine.name)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def wait_for(done: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.02)


def kjv_engine(root: Path) -> Path:
    """The trained example with a chat template, called `kjv`."""
    checkpoint = copy_checkpoint(ROOT / "examples/kjv/model", root / "checkpoint")
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    build(checkpoint, root / "kjv", BuildOptions(max_context=1024))
    return root / "kjv"


def calling_engine(root: Path) -> Path:
    """A model that says nothing but the call of a tool: each token follows from the one before it alone."""
    checkpoint = root / "calling_checkpoint"
    write_sample(checkpoint, "scout", "tiny", seed=3)
    tokenizer = byte_level()
    tokenizer.add_tokens([CALL])
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    tokens = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot|>"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(tokens))
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    call, end = tokenizer.token_to_id(CALL), tokenizer.token_to_id("<|eot|>")
    chain = {tokenizer.encode("a\n", add_special_tokens=False).ids[-1]: call, call: end}
    edit_config(checkpoint, vocab_size=(vocab := tokenizer.get_vocab_size()), eos_token_id=end, bos_token_id=0)
    weights = load_file(checkpoint / "model.safetensors")
    for name, array in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
            weights[name] = np.zeros_like(array)  # what a layer adds
    hidden = weights["model.embed_tokens.weight"].shape[1]
    embeddings = np.random.default_rng(0).standard_normal((vocab, hidden))
    head = np.zeros((vocab, hidden))
    for token, following in chain.items():
        head[following] = 4 * embeddings[token] / np.linalg.norm(embeddings[token])
    dtype = weights["model.embed_tokens.weight"].dtype
    weights |= {"model.embed_tokens.weight": embeddings.astype(dtype), "lm_head.weight": head.astype(dtype)}
    save_file(weights, checkpoint / "model.safetensors")
    build(checkpoint, root / "calling", BuildOptions(max_context=1024))
    return root / "calling"


def shapes_engine(root: Path) -> Path:
    """The trained example that sees."""
    build(ROOT / "examples/shapes/model", root / "shapes", BuildOptions(max_context=512))
    return root / "shapes"
