"""The command line of the native runtime against `l4export run`: the same ids and texts, and its refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from native_library import build_native
from native_session import ONNXRUNTIME
from workshop import ROOT, Workshop, hear_ctrl_c

IN_THE_BEGINNING = ("--prompt", "In the beginning", "--max-new-tokens", "24")
COMMON = ("token_ids", "text", "finish_reason", "prompt_tokens", "new_tokens", "logprobs")


@pytest.fixture(scope="module")
def l4run() -> Path:
    return build_native() / "l4run"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("l4run") / "kjv"
    build(ROOT / "examples/kjv/model", path, BuildOptions(max_context=256))
    return path


def run(program: Path, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "L4EXPORT_ONNXRUNTIME": str(ONNXRUNTIME)}
    command = [program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)


def answer(program: Path, *arguments: Any) -> dict[str, Any]:
    """The JSON document; nothing else is printed."""
    done = run(program, *arguments, "--json", "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def python_answer(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "l4export", "run", *map(str, arguments), "--json", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def refused(program: Path, *arguments: Any, status: int = 2) -> str:
    """The one line that a refusal is, on standard error alone."""
    done = run(program, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("l4run: ") and done.stderr.count("\n") == 1
    return done.stderr.removeprefix("l4run: ").rstrip("\n")


@pytest.mark.parametrize(
    "options",
    [
        (*IN_THE_BEGINNING,),
        (*IN_THE_BEGINNING, "--raw", "--logprobs", "2"),
        (*IN_THE_BEGINNING, "--temperature", "0.8", "--top-p", "0.9", "--seed", 2**64 - 1),
        (*IN_THE_BEGINNING, "--temperature", "1", "--top-k", "40", "--min-p", "0.05", "--seed", "7"),
        (*IN_THE_BEGINNING, "--repetition-penalty", "1.3", "--stop", "."),
        (*IN_THE_BEGINNING, "--recommended-sampling", "--seed", "3", "--stop", "and", "--stop", "the"),
        ("--token-ids", "3, 1,4 ,1,5", "--max-new-tokens", "300"),
        ("--prompt", "a <|begin_of_text|> b", "--special-tokens-as-text", "--max-new-tokens", "4"),
    ],
)
def test_it_says_what_python_says(l4run: Path, engine: Path, options: Sequence[Any]) -> None:
    found, due = answer(l4run, engine, *options), python_answer(engine, *options)
    assert {name: found.get(name) for name in COMMON} == {name: due.get(name) for name in COMMON}


def test_streams_text(l4run: Path, engine: Path) -> None:
    done = run(l4run, engine, *IN_THE_BEGINNING, "--stats", "--verify", "--threads", 1, "--provider", "cpu")
    assert done.returncode == 0
    assert done.stdout == answer(l4run, engine, *IN_THE_BEGINNING)["text"] + "\n"
    assert "prompt tokens at" in done.stderr and "ended by max_new_tokens; at most" in done.stderr


def test_ids_where_there_is_no_tokenizer(l4run: Path, workshop: Workshop) -> None:
    bare = workshop.engine_path("scout", "chunked")
    ids = answer(l4run, bare, "--token-ids", "1,2", "--max-new-tokens", 3)["token_ids"]
    assert run(l4run, bare, "--token-ids", "1,2", "--max-new-tokens", 3).stdout == " ".join(map(str, ids)) + " \n"
    assert "has no tokenizer.json; give --token-ids" in refused(l4run, bare, "--prompt", "x")


def test_a_batch(l4run: Path, engine: Path, tmp_path: Path) -> None:
    """Rows of one session with one seed: each draws from a stream of its own, the first as it does alone."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "In the beginning"}\n\n{"token_ids": [5, 6, 7]}\n{"prompt": "In the beginning"}\n')
    sampled = ("--max-new-tokens", 8, "--temperature", 1, "--seed", 5)
    rows = answer(l4run, engine, "--batch", file, *sampled)["rows"]
    alone = answer(l4run, engine, "--prompt", "In the beginning", *sampled)
    assert rows[0]["token_ids"] == alone["token_ids"] != rows[2]["token_ids"]
    lines = run(l4run, engine, "--batch", file, *sampled, "--threads", 1).stdout.splitlines()
    by_row = {line["row"]: line for line in map(json.loads, lines)}
    assert {row: {**line} for row, line in by_row.items()} == {
        row: {"row": row, **each} for row, each in enumerate(rows)
    }
    for text, message in (
        ("", "has no prompt"),
        ('{"prompt": 3}', "line 1: give one of"),
        ('{"token_ids": [1.5]}', "line 1: token_ids are no list"),
        ('\n{"token_ids": []}', "line 2: the prompt is empty"),
        ("nonsense", "line 1: not valid JSON"),
    ):
        file.write_text(text)
        assert message in refused(l4run, engine, "--batch", file)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), "give one of --prompt TEXT, --chat FILE, --token-ids 1,2,3 and --batch FILE"),
            (("--prompt", "a", "--token-ids", "1"), "give one of"),
            (("--prompt",), "--prompt: needs a value"),
            (("--prompt", "a", "--raw=1"), "--raw: takes no value"),
            (("--promt", "a"), "No such option: --promt"),
            (("--prompt", "a", "more"), "one ENGINE is enough"),
            (("--prompt", "a", "--max-new-tokens", "0"), "--max-new-tokens '0': give a whole number, 1 or more"),
            (("--prompt", "a", "--max-new-tokens", "1e3"), "--max-new-tokens '1e3': give"),
            (("--prompt", "a", "--seed", "-1"), "--seed '-1': give a whole number, 0 or more"),
            (("--prompt", "a", "--threads", "2000"), "--threads '2000': give a whole number, 1 to 1024"),
            (("--prompt", "a", "--temperature", "hot"), "--temperature 'hot': give a number"),
            (("--prompt", "a", "--logprobs", "1"), "--logprobs: are part of the JSON document; give --json"),
            (("--token-ids", "1", "--image", "x"), "--image: goes with --prompt"),
            (("--chat", "x", "--raw"), "--raw: messages need the chat template"),
            (("--prompt", "a", "--image", "x", "--raw", "--special-tokens-as-text"), "--image: with --raw"),
        ],
    )
    def test_usage(self, l4run: Path, options: Sequence[str], message: str) -> None:
        assert message in refused(l4run, "no-such-engine", *options)

    def test_no_engine(self, l4run: Path, tmp_path: Path) -> None:
        assert "ENGINE is missing" in refused(l4run, "--prompt", "a")
        assert str(tmp_path) in refused(l4run, tmp_path, "--prompt", "a")

    @pytest.mark.parametrize(
        "options", [("--temperature", "-1"), ("--top-k", "-1"), ("--top-p", "0"), ("--min-p", "2")]
    )
    def test_sampling(self, l4run: Path, engine: Path, options: Sequence[str]) -> None:
        name = options[0].removeprefix("--").replace("-", "_")
        assert refused(l4run, engine, "--prompt", "a", *options).startswith(f"{name} is ")

    def test_prompts(self, l4run: Path, engine: Path) -> None:
        assert "--token-ids '1,,2': write whole numbers with" in refused(l4run, engine, "--token-ids", "1,,2")
        assert "--token-ids '': write whole numbers" in refused(l4run, engine, "--token-ids", "")
        assert "is outside the vocabulary" in refused(l4run, engine, "--token-ids", "-1")
        assert "shorten the prompt" in refused(l4run, engine, "--token-ids", ",".join(["1"] * 257))

    def test_text_that_is_no_utf8(self, l4run: Path, engine: Path) -> None:
        for arguments in (
            [engine, "--prompt", b"a\xff"],
            [engine, "--prompt", "a", "--stop", b"\xc3"],
            [b"\xff", "--raw"],
        ):
            done = subprocess.run([l4run, *arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 2 and done.stdout == ""
            assert "is no valid UTF-8" in done.stderr and done.stderr.count("\n") == 1

    def test_an_empty_prompt(self, l4run: Path, engine: Path) -> None:
        """The tokenizer adds begin of text to it, so that it is a prompt, as in Python."""
        options = ("--prompt", "", "--raw", "--max-new-tokens", 3)
        assert answer(l4run, engine, *options)["token_ids"] == python_answer(engine, *options)["token_ids"]

    def test_no_onnxruntime(self, l4run: Path, engine: Path, tmp_path: Path) -> None:
        refused(l4run, engine, "--prompt", "a", "--onnxruntime", tmp_path / "none.so", status=3)

    def test_a_damaged_engine(self, l4run: Path, engine: Path, tmp_path: Path) -> None:
        for file in engine.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        data = bytearray((tmp_path / "tokenizer.json").read_bytes())
        data[-2] ^= 1
        (tmp_path / "tokenizer.json").write_bytes(data)
        assert "tokenizer.json" in refused(l4run, tmp_path, "--token-ids", "1", "--verify", status=1)


class TestOutput:
    def test_nobody_reads_it(self, l4run: Path, engine: Path) -> None:
        read, write = os.pipe()
        os.close(read)
        environment = {**os.environ, "L4EXPORT_ONNXRUNTIME": str(ONNXRUNTIME)}
        command = [l4run, engine, *IN_THE_BEGINNING]
        done = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
        os.close(write)
        assert done.returncode == 141 and done.stderr == "l4run: nobody reads the output any more\n"

    def test_a_full_disk(self, l4run: Path) -> None:
        with open("/dev/full", "wb") as full:
            done = subprocess.run([l4run, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 4 and "No space left on device" in done.stderr and done.stderr.count("\n") == 1

    def test_help_and_version(self, l4run: Path) -> None:
        done = run(l4run, "--help")
        assert done.returncode == 0 and done.stdout.startswith("Usage: l4run ENGINE") and done.stderr == ""
        assert max(map(len, done.stdout.splitlines())) <= 120
        version = run(l4run, "--version")
        assert version.returncode == 0 and version.stdout.startswith("l4run, version ")

    def test_ctrl_c(self, l4run: Path, engine: Path) -> None:
        """While it generates, after text has come: the line ends, and the reason has one of its own."""
        environment = {**os.environ, "L4EXPORT_ONNXRUNTIME": str(ONNXRUNTIME)}
        slow = [l4run, engine, "--prompt", "In the", "--max-new-tokens", "100000", "--temperature", "1"]
        process = subprocess.Popen(
            slow,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=hear_ctrl_c,  # noqa: PLW1509
        )
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert first and rest.endswith(b"\n")
        assert process.returncode in (130, 0)  # 0: the context was full before
        assert process.returncode == 0 or errors == b"l4run: interrupted\n"

    def test_ctrl_c_while_it_loads(self, l4run: Path, tmp_path: Path) -> None:
        """What is waited for is a pipe without a writer's end: it is refused, or interrupted; it never hangs."""
        os.mkfifo(tmp_path / "manifest.json")
        process = subprocess.Popen([l4run, tmp_path, "--prompt", "a"], stderr=subprocess.PIPE, preexec_fn=hear_ctrl_c)  # noqa: PLW1509
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (2, 130) and errors.count(b"\n") == 1


class TestImages:
    @pytest.fixture(scope="class")
    def sees(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("shapes") / "e"
        build(ROOT / "examples/shapes/model", path, BuildOptions())
        return path

    def picture(self, path: Path) -> Path:
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[8:30, 10:30, 0] = 255
        path.write_bytes(b"P6\n# a comment\n60 40\n255\n" + pixels.tobytes())
        return path

    def test_it_sees_what_python_sees(self, l4run: Path, sees: Path, tmp_path: Path) -> None:
        picture = self.picture(tmp_path / "a.ppm")
        options = ("--prompt", "What is there?", "--image", picture, "--max-new-tokens", "8")
        found, due = answer(l4run, sees, *options), python_answer(sees, *options)
        assert [found[name] for name in COMMON[:5]] == [due[name] for name in COMMON[:5]]
        assert found["images"] == due["images"]
        chat = [
            {
                "role": "user",
                "content": [{"type": "image", "path": "a.ppm"}, {"type": "text", "text": "What is there?"}],
            }
        ]
        (tmp_path / "chat.json").write_text(json.dumps(chat))
        assert (
            answer(l4run, sees, "--chat", tmp_path / "chat.json", "--max-new-tokens", 8)["token_ids"]
            == due["token_ids"]
        )

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"P5\n2 2\n255\n1234", "not a binary PPM"),
            (b"P6\n2 2\n65535\n" + b"x" * 24, "not a binary PPM"),
            (b"P6\n2 2\n255\n" + b"x" * 11, "has 11 bytes of pixels, and 2 x 2 take 12"),
            (b"P6\n99999999 2\n255\n", "not a binary PPM"),
            (b"P6\n#", "not a binary PPM"),
            (b"", "not a binary PPM"),
        ],
    )
    def test_other_files(self, l4run: Path, sees: Path, tmp_path: Path, data: bytes, message: str) -> None:
        (tmp_path / "x.ppm").write_bytes(data)
        assert message in refused(l4run, sees, "--prompt", "a", "--image", tmp_path / "x.ppm")


def test_the_binary_is_small_and_needs_libc_alone(l4run: Path) -> None:
    assert l4run.stat().st_size < 8 << 20
    listed = subprocess.run(["readelf", "-d", l4run], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].split(".")[0] for line in listed.splitlines() if "(NEEDED)" in line}
    assert needed <= {"libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64"}
