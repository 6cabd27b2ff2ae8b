"""The command line: what it prints, what it refuses, with which exit code, and that a refusal writes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l4export.cli import main
from l4export.runtimes.engine import Engine
from workshop import Workshop, copy_checkpoint, edit_config


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return Result(int(caught.value.code or 0), output.out, output.err)

    return run


def assert_refused(result: Result, code: int, *words: str) -> None:
    """One line on standard error that holds the words, nothing on standard output."""
    assert result.code == code, result.err
    assert result.out == ""
    assert result.err.count("\n") == 1, result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys, l4export.cli as c\ntry: c.main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "onnxruntime", "onnx", "onnx_ir", "numpy", "rich"}
    assert not heavy & set(done.stderr.split())
    for name in ("sample", "inspect", "plan", "build", "parity", "quality", "run", "bench", "verify", "native"):
        assert name in done.stdout


@pytest.mark.parametrize(
    "command", ["sample", "inspect", "plan", "build", "parity", "quality", "run", "bench", "verify", "native"]
)
def test_every_command_has_help(cli: Callable[..., Result], command: str) -> None:
    result = cli(command, "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: l4export {command}")


@pytest.mark.parametrize(
    "arguments", [["build"], ["no-such-command"], ["run"], ["sample", "x", "--variant", "none"], ["build", "a", "--o"]]
)
def test_bad_usage(cli: Callable[..., Result], arguments: list[str]) -> None:
    assert_refused(cli(*arguments), 2, "l4export")


def test_from_sample_to_parity(cli: Callable[..., Result], tmp_path: Path) -> None:
    checkpoint, engine, report = tmp_path / "c", tmp_path / "e", tmp_path / "report.json"
    assert "206,400 parameters" in cli("sample", checkpoint, "--variant", "scout").out
    assert json.loads(cli("inspect", checkpoint, "--json").out)["experts"] == 4
    plan = json.loads(cli("build", checkpoint, "-o", engine, "--dry-run", "--json").out)
    assert not engine.exists()
    built = json.loads(cli("build", checkpoint, "-o", engine, "--json").out)
    assert built["passes"] == plan["passes"]
    assert sum(plan["files"].values()) == (engine / "decoder-00001-of-00001.data").stat().st_size
    assert json.loads(cli("inspect", engine, "--json").out)["kv_layout"] == "static"
    rows = [line.split("  ")[0] for line in cli("inspect", engine).out.splitlines()]
    assert "kv layout" in rows and "engines" not in rows  # none were compiled
    assert cli("verify", engine).code == 0
    shown = cli("parity", engine, "--reference", checkpoint, "--prefill", 50, "--decode", 30, "-o", report)
    assert shown.code == 0
    assert "parity: passed" in shown.out
    assert json.loads(report.read_text())["details"]["chunk_boundaries"] == 4
    tokens = json.loads(cli("run", engine, "--token-ids", "5,6,7", "--max-new-tokens", 4, "--json").out)
    assert len(tokens["token_ids"]) == 4
    assert tokens["finish_reason"] == "max_new_tokens"
    assert cli("run", engine, "--token-ids", "5,6,7", "--max-new-tokens", 4).out.split() == [
        str(token) for token in tokens["token_ids"]
    ]


def test_a_layout_in_chunks(cli: Callable[..., Result], workshop: Workshop, tmp_path: Path) -> None:
    checkpoint, engine = workshop.checkpoint("scout"), tmp_path / "e"
    assert cli("build", checkpoint, "-o", engine, "--kv-layout", "chunked", "--max-context", 1000).code == 0
    assert not (engine / "genai_config.json").exists()
    facts = json.loads(cli("inspect", engine, "--json").out)
    assert facts["kv_slots"] == {"chunked": 16, "full": 1000}
    slot = 2 * 2 * 16 * 4  # keys and values, heads, width, float32
    assert (facts["kv_bytes_per_token"], facts["kv_bytes"]) == (slot, slot * (3 * 16 + 1000))
    assert cli("parity", engine, "--reference", checkpoint, "--prefill", 50, "--decode", 30).code == 0
    said = cli("run", engine, "--token-ids", "5,6,7", "--max-new-tokens", 3).out.split()
    assert said == [str(token) for token in workshop.greedy("scout", [5, 6, 7], 3)]


def test_parity_failure_is_exit_code_1(cli: Callable[..., Result], workshop: Workshop, tmp_path: Path) -> None:
    """An engine of other weights: the report is printed all the same."""
    other = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.2.self_attn.v_proj.weight"] *= np.float32(1.01)
    save_file(weights, other / "model.safetensors")
    engine = workshop.engine_path("scout", "static")
    result = cli("parity", engine, "--reference", other, "--prefill", 20, "--decode", 4)
    assert result.code == 1
    assert "parity: FAILED" in result.out
    assert result.err.count("\n") == 1
    assert "max_relative_difference" in result.err
    result = cli("parity", engine, "--reference", other, "--prefill", 20, "--decode", 4, "--stream")
    assert result.code == 1
    assert "layer 2 is the first to depart" in result.err


class TestBadCheckpoints:
    """Exit code 2, one line, and neither an engine nor anything else is left."""

    @pytest.fixture
    def checkpoint(self, workshop: Workshop, tmp_path: Path) -> Path:
        return copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")

    @pytest.fixture
    def refused(self, cli: Callable[..., Result], checkpoint: Path, tmp_path: Path) -> Callable[..., None]:
        def check(*words: str, code: int = 2, options: tuple[object, ...] = ()) -> None:
            before = sorted(os.listdir(tmp_path))
            assert_refused(cli("build", checkpoint, "-o", tmp_path / "e", *options), code, *words)
            assert sorted(os.listdir(tmp_path)) == before

        return check

    def test_missing_directory(self, cli: Callable[..., Result], tmp_path: Path) -> None:
        assert_refused(cli("build", tmp_path / "none", "-o", tmp_path / "e"), 2, "none")

    def test_missing_weights(self, checkpoint: Path, refused: Callable[..., None]) -> None:
        (checkpoint / "model.safetensors").unlink()
        refused("model.safetensors")

    def test_truncated_weights(self, checkpoint: Path, refused: Callable[..., None]) -> None:
        with open(checkpoint / "model.safetensors", "r+b") as file:
            file.truncate(500_000)
        refused("truncated", "model.safetensors")

    def test_gigantic_header(self, checkpoint: Path, refused: Callable[..., None]) -> None:
        with open(checkpoint / "model.safetensors", "r+b") as file:
            file.write((2**62).to_bytes(8, "little"))
        refused("model.safetensors")

    def test_index_that_leads_outside(self, checkpoint: Path, refused: Callable[..., None]) -> None:
        (checkpoint / "model.safetensors").rename(checkpoint / "part.safetensors")
        index = {"weight_map": {"lm_head.weight": "../secret.safetensors"}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        refused("secret")

    def test_missing_shard(self, checkpoint: Path, refused: Callable[..., None]) -> None:
        (checkpoint / "model.safetensors").unlink()
        index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        refused("missing shard", "model-00001-of-00002.safetensors")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda w: w.pop("model.norm.weight"), ("model.norm.weight", "missing")),
            (lambda w: w.update({"model.norm.weight": np.ones(63, np.float32)}), ("model.norm.weight", "[63]", "[64]")),
            (lambda w: w.update({"model.norm.weight": np.ones(64, np.int8)}), ("model.norm.weight", "I8")),
            (lambda w: w.update({"model.norm.weight": np.ones(64, np.float64)}), ("model.norm.weight", "F64")),
        ],
    )
    def test_wrong_tensors(
        self, checkpoint: Path, refused: Callable[..., None], change: Callable[..., object], words: tuple[str, ...]
    ) -> None:
        weights = load_file(checkpoint / "model.safetensors")
        change(weights)
        save_file(weights, checkpoint / "model.safetensors")
        refused(*words)

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"model_type": "mixtral"}, "mixtral"),
            ({"num_key_value_heads": 3}, "num_key_value_heads"),
            ({"num_hidden_layers": 5}, "layer"),
            ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
            ({"quantization_config": {"quant_method": "spqr"}}, "quantization_config"),
            ({"vocab_size": "many"}, "vocab_size"),
        ],
    )
    def test_wrong_configs(
        self, checkpoint: Path, refused: Callable[..., None], changes: dict[str, object], word: str
    ) -> None:
        edit_config(checkpoint, **changes)
        refused(word, "config.json")

    def test_config_that_is_not_json(self, checkpoint: Path, refused: Callable[..., None]) -> None:
        (checkpoint / "config.json").write_text("{not json")
        refused("config.json")

    def test_pickle_is_never_read(self, checkpoint: Path, refused: Callable[..., None]) -> None:
        (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
        refused("pickle")

    def test_context_beyond_the_model(self, refused: Callable[..., None]) -> None:
        refused("--max-context", options=("--max-context", 4097))

    def test_a_dtype_without_kernels(self, refused: Callable[..., None]) -> None:
        refused("bfloat16", options=("--dtype", "bf16"))

    def test_a_weight_that_does_not_fit(self, checkpoint: Path, refused: Callable[..., None]) -> None:
        weights = load_file(checkpoint / "model.safetensors")
        weights["model.layers.1.self_attn.q_proj.weight"][3, 4] = 1e6
        save_file(weights, checkpoint / "model.safetensors")
        refused("model.layers.1.self_attn.q_proj.weight", "1e+06", options=("--dtype", "fp16"))

    def test_output_that_exists(self, cli: Callable[..., Result], checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "precious").write_text("kept")
        for options in ((), ("--force",)):
            assert_refused(cli("build", checkpoint, "-o", tmp_path / "e", *options), 2, "not an engine")
        assert (tmp_path / "e" / "precious").read_text() == "kept"

    def test_output_that_is_an_engine(self, cli: Callable[..., Result], checkpoint: Path, tmp_path: Path) -> None:
        assert cli("build", checkpoint, "-o", tmp_path / "e").code == 0
        assert_refused(cli("build", checkpoint, "-o", tmp_path / "e"), 2, "--force")
        assert cli("build", checkpoint, "-o", tmp_path / "e", "--force").code == 0

    def test_the_root_directory_as_output(self, cli: Callable[..., Result], checkpoint: Path) -> None:
        assert_refused(cli("build", checkpoint, "-o", "/"), 2, "name a new one")

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_weight_that_is_not_finite(self, checkpoint: Path, refused: Callable[..., None], bad: float) -> None:
        weights = load_file(checkpoint / "model.safetensors")
        weights["model.layers.1.feed_forward.experts.down_proj"][2, 3, 4] = bad
        save_file(weights, checkpoint / "model.safetensors")
        refused("model.layers.1.feed_forward.experts.down_proj", "[2, 3, 4]")

    def test_a_tensor_that_the_config_knows_nothing_of(self, checkpoint: Path, refused: Callable[..., None]) -> None:
        weights = load_file(checkpoint / "model.safetensors")
        weights["model.layers.1.self_attn.q_proj.bias"] = np.ones(64, np.float32)
        save_file(weights, checkpoint / "model.safetensors")
        refused("model.layers.1.self_attn.q_proj.bias")

    def test_a_tokenizer_that_is_not_json(self, checkpoint: Path, refused: Callable[..., None]) -> None:
        (checkpoint / "tokenizer.json").write_text("{")
        refused("tokenizer.json")

    def test_output_without_a_parent(self, cli: Callable[..., Result], checkpoint: Path, tmp_path: Path) -> None:
        assert_refused(cli("build", checkpoint, "-o", tmp_path / "none" / "e"), 4, "none")


BAD_SAMPLING = [
    *(("--temperature", "-1"), ("--top-p", "0"), ("--top-p", "nan"), ("--seed", "-2"), ("--top-k", "-1")),
    *(("--min-p", "2"), ("--repetition-penalty", "0")),
]


class TestBadEnginesAndPrompts:
    @pytest.mark.parametrize(
        ("ids", "word"),
        [
            ("256", "256"),
            ("-1", "-1"),
            ("1,x", "1,x"),
            ("", "whole numbers"),
            ("1,,2", "1,,2"),
            ("1_0", "1_0"),
            ("9" * 30, "vocabulary"),
            (",".join(["1"] * 257), "--max-context"),
        ],
    )
    def test_bad_token_ids(self, cli: Callable[..., Result], workshop: Workshop, ids: str, word: str) -> None:
        engine = workshop.engine_path("scout", "static")
        assert_refused(cli("run", engine, "--token-ids", ids, "--max-new-tokens", 2), 2, word)

    def test_neither_or_both_prompts(self, cli: Callable[..., Result], workshop: Workshop) -> None:
        engine = workshop.engine_path("scout", "static")
        assert_refused(cli("run", engine), 2, "--prompt")
        assert_refused(cli("run", engine, "--prompt", "a", "--token-ids", "1"), 2, "--prompt")

    def test_text_without_a_tokenizer(self, cli: Callable[..., Result], workshop: Workshop) -> None:
        assert_refused(cli("run", workshop.engine_path("scout", "static"), "--prompt", "a"), 2, "--token-ids")

    @pytest.mark.parametrize("option", BAD_SAMPLING)
    def test_bad_sampling(self, cli: Callable[..., Result], workshop: Workshop, option: tuple[str, str]) -> None:
        engine = workshop.engine_path("scout", "static")
        assert_refused(cli("run", engine, "--token-ids", "1", *option), 2, option[0].strip("-").replace("-", "_"))

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (("--threshold", "nonsense=1"), "nonsense"),
            (("--threshold", "kl_max"), "NAME=VALUE"),
            (("--prefill", "0"), "--prefill"),
            (("-o", "report.txt"), "name it so"),
            (("--prefill", "250", "--decode", "10"), "max_context"),
        ],
    )
    def test_bad_parity_options(
        self, cli: Callable[..., Result], workshop: Workshop, arguments: tuple[str, ...], word: str
    ) -> None:
        engine, checkpoint = workshop.engine_path("scout", "static"), workshop.checkpoint("scout")
        assert_refused(cli("parity", engine, "--reference", checkpoint, *arguments), 2, word)

    def test_a_changed_byte(self, cli: Callable[..., Result], workshop: Workshop, tmp_path: Path) -> None:
        engine = copy_checkpoint(workshop.engine_path("scout", "static"), tmp_path / "e")
        with open(engine / "decoder-00001-of-00001.data", "r+b") as file:
            file.seek(70_000)
            byte = file.read(1)
            file.seek(70_000)
            file.write(bytes([byte[0] ^ 1]))
        assert_refused(cli("verify", engine), 1, "decoder-00001-of-00001.data", "changed")
        assert_refused(cli("run", engine, "--token-ids", "1"), 2, "decoder-00001-of-00001.data", "changed")

    def test_a_missing_file(self, cli: Callable[..., Result], workshop: Workshop, tmp_path: Path) -> None:
        engine = copy_checkpoint(workshop.engine_path("scout", "static"), tmp_path / "e")
        (engine / "decoder.onnx").unlink()
        assert_refused(cli("verify", engine), 1, "decoder.onnx", "missing")
        assert_refused(cli("run", engine, "--token-ids", "1"), 2, "decoder.onnx", "missing")

    def test_a_newer_format(self, cli: Callable[..., Result], workshop: Workshop, tmp_path: Path) -> None:
        engine = copy_checkpoint(workshop.engine_path("scout", "static"), tmp_path / "e")
        manifest = json.loads((engine / "manifest.json").read_text())
        (engine / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
        for command in (("verify", engine), ("inspect", engine), ("run", engine, "--token-ids", "1")):
            assert_refused(cli(*command), 2, "newer", "upgrade")


@pytest.mark.parametrize("command", ["plan --device-memory 1KB --json", "plan --device-memory 1GB", "inspect"])
def test_where_the_reader_has_gone_there_is_no_verdict(workshop: Workshop, command: str) -> None:
    """Neither 0, after an answer that is no, nor 1 after one that is yes: as `l4export plan ... | true` ends."""
    name, *options = command.split()
    arguments = [sys.executable, "-m", "l4export", name, str(workshop.checkpoint("scout")), *options]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run(arguments, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


@contextlib.contextmanager
def gone() -> Iterator[int]:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def l4export_process(*words: object, **streams: Any) -> int:
    command = [sys.executable, "-m", "l4export", *map(str, words)]
    return subprocess.run(command, check=False, timeout=60, **streams).returncode


def test_a_reader_that_has_gone_is_no_verdict(workshop: Workshop) -> None:
    checkpoint, engine = workshop.checkpoint("scout"), workshop.engine_path("scout", "static")
    with gone() as pipe:
        assert l4export_process("inspect", checkpoint, stdout=pipe) == 141  # by rich
        assert l4export_process("verify", engine, stdout=pipe) == 141  # by click


def test_a_log_that_cannot_be_written_leaves_the_exit_code(tmp_path: Path) -> None:
    with gone() as pipe, open("/dev/full", "wb") as full:
        for log in (pipe, full):
            assert l4export_process("inspect", tmp_path / "nowhere", stderr=log) == 2


@pytest.mark.parametrize(
    ("encoding", "name"), [("ascii:strict", "\xe9"), ("utf-8:strict", "\udcff"), ("utf-8:strict", "[red]:cat:")]
)
def test_names_that_the_terminal_cannot_show(workshop: Workshop, tmp_path: Path, encoding: str, name: str) -> None:
    (tmp_path / name).symlink_to(workshop.checkpoint("scout"))
    command = [sys.executable, "-m", "l4export", "inspect", name]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert ascii(name).strip("'").encode() in done.stdout


def test_what_the_locale_has_no_characters_for_is_escaped(workshop: Workshop, tmp_path: Path) -> None:
    engine = copy_checkpoint(workshop.engine_path("scout", "static"), tmp_path / "δ")
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    arguments = [sys.executable, "-m", "l4export", "verify", str(engine)]
    done = subprocess.run(arguments, capture_output=True, env=environment, check=True)
    assert rb"\u03b4: " in done.stdout and done.stderr == b""


def test_an_interruption_has_a_line_of_its_own(
    cli: Callable[..., Result], workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens are on the terminal by then, without the end of their line."""

    def interrupted(*_: object, **__: object) -> Iterator[int]:
        yield 5
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "generate", interrupted)
    result = cli("run", workshop.engine_path("scout", "static"), "--token-ids", "1")
    assert (result.code, result.out) == (130, "5 \n") and result.err.startswith("l4export: interrupted")


def test_without_onnxruntime_it_says_what_to_install(workshop: Workshop) -> None:
    hide = "import sys; sys.modules['onnxruntime'] = None\nfrom l4export.cli import main\nmain(sys.argv[1:])"
    arguments = ["run", str(workshop.engine_path("scout", "static")), "--token-ids", "1"]
    done = subprocess.run([sys.executable, "-c", hide, *arguments], capture_output=True, text=True, check=False)
    assert_refused(Result(done.returncode, done.stdout, done.stderr), 3, "pip install 'l4export[cpu]'")


def test_without_torch_it_builds_and_says_what_parity_needs(workshop: Workshop, tmp_path: Path) -> None:
    hide = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\nfrom l4export.cli import main\n"
    start = [sys.executable, "-c", hide + "main(sys.argv[1:])"]
    checkpoint, engine = str(workshop.checkpoint("scout")), str(tmp_path / "e")
    subprocess.run([*start, "build", checkpoint, "-o", engine], check=True, capture_output=True)
    done = subprocess.run(
        [*start, "parity", engine, "--reference", checkpoint], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr.strip().splitlines()[-1].endswith("pip install 'l4export[reference]'")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--kv-dtype", "int8"], 3, "needs onnxruntime: pip install"),
        (["--kv-calibrate", "x"], 2, "only scales of --kv-dtype int8 and int4 are calibrated"),
        (["--kv-dtype", "fp16", "--kv-calibrate", "x"], 2, "only scales of --kv-dtype int8 and int4 are calibrated"),
        (["--kv-dtype", "int8", "--kv-calibrate", "x"], 2, "--kv-calibrate x: no such file"),
    ],
)
def test_kv_dtypes_that_cannot_be_built_are_refused(
    cli: Callable[..., Result],
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails
    monkeypatch.chdir(tmp_path)
    assert_refused(cli("build", workshop.checkpoint("scout"), "-o", "e", *arguments), code, message)
    assert not list(tmp_path.iterdir())


def test_a_kv_dtype_is_built_and_shown(cli: Callable[..., Result], workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text(" ".join(map(str, range(100))))
    options = ["--kv-dtype", "int4", "--kv-calibrate", tmp_path / "ids", "--json"]
    result = cli("build", workshop.checkpoint("scout"), "-o", tmp_path / "e", *options)
    assert json.loads(result.out)["engine"] == str(tmp_path / "e")
    assert "calibrating the KV cache: 100 tokens of ids" in result.err
    facts = json.loads(cli("inspect", tmp_path / "e", "--json").out)
    assert facts["precision"]["kv_cache"] == "int4"
    assert facts["kv_bytes_per_token"] == 2 * 4 * 2 * 16 // 2  # keys and values, layers, heads, channels, half a byte
