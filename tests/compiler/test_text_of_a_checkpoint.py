"""What a build says of a checkpoint's text, what it copies, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_tokenizers import change_tokenizer, write_tokenizer

from l4export import runtimes
from l4export.cli import main
from l4export.compiler.build import build
from l4export.errors import InputError
from workshop import Workshop, copy_checkpoint, edit_config

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def checkpoint(workshop: Workshop, tmp_path: Path) -> Path:
    """A model of 256 tokens, with a tokenizer of as many."""
    path = write_tokenizer(copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "checkpoint"))
    raw = json.loads((path / "tokenizer.json").read_text())
    model = raw["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < 256}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    (path / "tokenizer.json").write_text(json.dumps(raw))
    return path


def notices(checkpoint: Path) -> list[str]:
    said: list[str] = []
    build(checkpoint, checkpoint.parent / "engine", on_notice=said.append)
    return said


def test_a_tokenizer_without_a_template(checkpoint: Path) -> None:
    assert notices(checkpoint) == ["the tokenizer has no chat template: `run --prompt` continues a text as it is"]


def test_a_model_without_text_says_nothing(workshop: Workshop, tmp_path: Path) -> None:
    assert notices(copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "checkpoint")) == []


def test_a_tokenizer_of_another_format(workshop: Workshop, tmp_path: Path) -> None:
    path = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "checkpoint")
    (path / "tokenizer.model").write_text("YQ== 0")
    assert notices(path) == [
        "tokenizer.model alone is not read: the engine takes token ids; "
        "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) of transformers makes one"
    ]


def test_a_vocabulary_larger_than_the_models(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    raw = json.loads((checkpoint / "tokenizer.json").read_text())
    pad = {**raw["added_tokens"][0], "id": 256, "content": "[PAD]"}
    change_tokenizer(checkpoint, added_tokens=[*raw["added_tokens"], pad])
    assert notices(checkpoint) == [
        "the tokenizer has token ids up to 256 ('[PAD]'), the model 256 tokens: prompts with the others are refused"
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(checkpoint.parent / "engine"), "--prompt", "a[PAD]"])
    assert stopped.value.code == 2
    assert "token id 256 is outside the vocabulary" in capsys.readouterr().err


def test_templates_that_do_not_write_what_is_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ bos_token }}")
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert notices(checkpoint) == [
        "chat_template.jinja: the chat template does not write what a user says; `run` needs --raw",
        "chat_template.json has another chat template than chat_template.jinja, whose is used",
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(checkpoint.parent / "engine"), "--prompt", "a"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().endswith("chat template: it does not write what a user says; give --raw")
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(checkpoint.parent / "engine"), "--prompt", "a", "--raw", "--max-new-tokens", "1"])
    assert stopped.value.code == 0


def test_a_template_that_is_no_program(checkpoint: Path) -> None:
    named = [{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "{% for %}"}]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    with pytest.raises(InputError, match=r"tokenizer_config\.json: rag chat template: .*; correct the template"):
        notices(checkpoint)
    assert not (checkpoint.parent / "engine").exists()


@pytest.mark.parametrize("options", [[], ["--kv-dtype", "int8"], ["--dry-run"]])
def test_a_tokenizer_that_panics(checkpoint: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    change_tokenizer(checkpoint, pre_tokenizer={"type": "FixedLength", "length": 0})
    with pytest.raises(SystemExit) as stopped:
        main(["build", str(checkpoint), "-o", str(checkpoint.parent / "engine"), *options])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert "tokenizer.json: not a tokenizer: PanicException" in said
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["checkpoint"]


COMPANIONS = {
    "tokenizer_config.json": '\ufeff{"bos_token": "<|begin_of_text|>"}',
    "special_tokens_map.json": "{}",
    "added_tokens.json": "{}",
    "chat_template.json": "{}",
    "processor_config.json": "{}",
    "preprocessor_config.json": "{}",
    "chat_template.jinja": TEMPLATE,
    "additional_chat_templates/tool_use.jinja": "T{{ tools | tojson }}",
    "generation_config.json": "{}",
    "LICENSE": "terms",
    "LICENSE.txt": "terms",
    "Notice.md": "by us",
    "USE_POLICY.md": "do no harm",
}


def test_what_goes_with_a_model_goes_with_its_engine(checkpoint: Path) -> None:
    for name, text in COMPANIONS.items():
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text(text, encoding="utf-8")
    (checkpoint / "README.md").write_text("not copied")
    (checkpoint / "COPYING").mkdir()
    manifest = build(checkpoint, checkpoint.parent / "engine")
    for name, text in COMPANIONS.items():
        flat = name.replace("/", ".")
        assert (checkpoint.parent / "engine" / flat).read_text(encoding="utf-8") == text and flat in manifest.files
    assert not {"README.md", "COPYING"} & manifest.files.keys()
    codec = runtimes.load(checkpoint.parent / "engine", threads=1).text
    assert codec is not None and codec.special_tokens == {"bos_token": "<|begin_of_text|>"}
    assert codec.render_chat([], tools=[]) == "T[]" and codec.render_chat([]) == ""


@pytest.mark.parametrize("name", ["chat_template.json", "added_tokens.json"])
@pytest.mark.parametrize("content", [b"[]", b"{", b"[" * 10_000, b"\xff"])
def test_companions_that_cannot_be_read(checkpoint: Path, name: str, content: bytes) -> None:
    (checkpoint / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: not a JSON object"):
        notices(checkpoint)


def test_a_model_without_stop_tokens_is_not_for_onnxruntime_genai(workshop: Workshop, tmp_path: Path) -> None:
    path = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "checkpoint")
    edit_config(path, eos_token_id=None)
    said = notices(path)
    assert len(said) == 1 and said[0].startswith("no genai_config.json: the model names no end-of-sequence token")
    engine = runtimes.load(tmp_path / "engine", threads=1)
    assert not (engine.directory / "genai_config.json").exists()
    assert len(list(engine.generate([1, 2, 3], 20))) == 20
