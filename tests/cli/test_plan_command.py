"""`l4export plan`: what it prints, from which files, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from l4export.checkpoint.sample import hf_config
from l4export.checkpoint.sample_vision import whole_config
from l4export.cli import main
from l4export.errors import InputError
from l4export.sizing.engine_size import EngineSize, EngineSizes
from measured_process import measure


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A directory with a config.json and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps(hf_config("scout", "tiny")))
    return tmp_path


def plan(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *map(str, arguments)])
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


def test_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the file as from the directory; every combination with all its bytes."""
    code, out, err = plan(
        capsys, config / "config.json", "--device", "Spark", "--context", 1000, "--batch", 2, "--json"
    )
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    assert (document["device"], document["device_bytes"], document["batch"]) == ("spark", 128 * 10**9, 2)
    assert len(document["combinations"]) == 40
    for row in document["combinations"]:
        assert row["total_bytes"] == row["weights_bytes"] + row["kv_bytes"] + row["working_bytes"]
        assert row["fits"] and row["max_context"] == 4096 and row["context"] == 1000
    assert document["choice"] in document["combinations"]


def test_table_and_choice(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, config, "--device-memory", "64GiB")
    assert code == 0
    assert "device with 68.7 GB" in out
    assert out.count("4,096 ") >= 30
    assert "--quant none --dtype fp32 --kv-layout chunked --kv-dtype fp32 --max-context 4096" in out
    assert "hold 4,096 tokens, as measured on a small model (`l4export quality` measures yours)" in out
    assert max(len(line) for line in out.splitlines()[2:-2]) <= 80


def test_without_a_device(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, config, "--context", 100)
    assert code == 0
    assert "GB in all for 100 tokens" in out
    assert "Give --device" in out


def test_too_small_a_device_is_exit_code_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The document is printed all the same."""
    code, out, err = plan(capsys, config, "--device-memory", "1MB", "--json")
    assert code == 1
    assert json.loads(out)["choice"] is None
    assert err.count("\n") == 1
    assert "nothing fits 0.001 GB, whatever the context" in err


def test_a_context_that_fits_nowhere_is_exit_code_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What reaches farthest is shown."""
    code, out, err = plan(capsys, config, "--device-memory", 135_900_000, "--context", 4096)
    assert code == 1
    assert "x: too much" in out and "No other combination holds a longer context" in out
    assert err.count("\n") == 1
    assert "lower --context or --batch" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--context", "4097"], "takes 1 to 4096 tokens"),
        (["--context", "0"], "takes 1 to 4096 tokens"),
        (["--context", "many"], "--context"),
        (["--batch", "0"], "--batch"),
        (["--device", "a100"], "'h100', 'h200', 'thor', 'spark', 'server64'"),
        (["--device-memory", "lots"], "--device-memory 'lots' is not a size"),
        (["--device-memory", "80 gigs"], "is not a size"),
        (["--device-memory", "-1GB"], "is not a size"),
        (["--device-memory", "0GB"], "at least one byte"),
        (["--device-memory", "24"], "--device-memory 24: of which unit? write 24GB or 24GiB"),
        (["--device-memory", "1.5"], "write 1.5GB"),
        (["--device-memory", "80GB", "--device", "h100"], "give one of them"),
    ],
)
def test_bad_options(config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, out, err = plan(capsys, config, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "config.json is missing"),
        ("{", "config.json"),
        ('{"model_type": "llama"}', "model_type"),
        ("[]", "object"),
    ],
)
def test_bad_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    code, out, err = plan(capsys, tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_no_such_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = plan(capsys, tmp_path / "none")
    assert code == 2
    assert "no such file or directory" in err


def test_help_names_the_devices(capsys: pytest.CaptureFixture[str]) -> None:
    out = " ".join(plan(capsys, "--help")[1].split())
    assert "h100: NVIDIA H100, 80 GB" in out and "server64: a server with 64 GB" in out


def test_a_vision_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes in both float types, the tokens of an image, and the options that build it."""
    monkeypatch.setattr(EngineSizes, "size", lambda *_: EngineSize(10**6, 0, 0))
    (tmp_path / "config.json").write_text(json.dumps(whole_config(hf_config("scout", "tiny"), "scout", "tiny")))
    code, out, _ = plan(capsys, tmp_path, "--device-memory", "1GB", "--context", 100)
    assert code == 0
    assert "Vision tower in fp32: weights" in out and "Vision tower in fp16: weights" in out
    assert "GB, included." in out and " + vision 0.00" in out
    assert "An image takes 7 tokens with one tile and 87 with 17" in out
    _, out, _ = plan(capsys, tmp_path, "--device-memory", "1GB", "--context", 100, "--vision-dtype", "fp16")
    assert "--max-context 100 --vision-dtype fp16" in out and "tower in fp32" not in out
    _, out, _ = plan(capsys, tmp_path, "--device-memory", "1GB", "--context", 100, "--vision", "none")
    assert "--max-context 100 --vision none" in out and "Vision tower" not in out
    _, out, _ = plan(capsys, tmp_path, "--context", 100, "--json")
    document = json.loads(out)
    assert document["vision"]["rows_of_a_tile"] == 4 and document["vision"]["tokens_of_tiles"]["17"] == 87
    for row in document["combinations"]:
        tower = row["vision"]
        parts = [row[f"{name}_bytes"] for name in ("weights", "kv", "working")]
        parts += [tower[f"{name}_bytes"] for name in ("weights", "working", "features")]
        assert row["total_bytes"] == sum(parts)


def test_nothing_can_be_built(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every combination is refused: the reason, and not an internal error."""

    def refuse(*_: object) -> None:
        raise InputError("this cannot be built")

    monkeypatch.setattr(EngineSizes, "size", refuse)
    for device in ([], ["--device", "h100"]):
        code, out, err = plan(capsys, config, *device)
        assert code == 1 and "Left out: this cannot be built." in out
        assert "no combination can be built for this model and device" in err


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["scout", "maverick"])
@pytest.mark.parametrize("options", [["--device", "h200"], ["--device-memory", "2TB", "--context", "131072"]])
def test_full_size_takes_seconds_and_little_memory(tmp_path: Path, variant: str, options: list[str]) -> None:
    """The issue's models: less than 1 GB, and less than 20 s of processor time on any machine."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(hf_config(variant, "full")))
    usage = measure([sys.executable, "-m", "l4export", "plan", path, *options], tmp_path / "usage")
    assert usage.exit_code == (1 if variant == "maverick" and "h200" in options else 0)
    assert usage.peak < 10**9
    assert usage.seconds < 20


def test_an_h100_is_planned_for_cuda(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Engines of another target, and the command that builds the choice. (Tiny experts have no block for CUDA.)"""
    code, out, _ = plan(capsys, config, "--device", "h100", "--context", 1000)
    assert code == 0
    assert "Choose --target ort-cuda --quant none --dtype fp16 --kv-layout chunked --kv-dtype fp16" in out
    assert "Left out: /layers.0/moe/experts/MoE: experts in blocks of" in out
    code, out, _ = plan(capsys, config, "--device", "h100", "--json")
    document = json.loads(out)
    assert {row["target"] for row in document["combinations"]} == {"ort-cuda"}
