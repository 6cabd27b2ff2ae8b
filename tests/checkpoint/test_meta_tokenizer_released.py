"""The released tokenizer.model: ids of our tokenizer.json are those of Meta's own tokenizer, on hard strings.

Both come from the package index, in a temporary folder: `llama-models` has the file and the tokenizer, which runs on
`tiktoken`. Neither is kept.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from l4export.checkpoint import write_tokenizer_json

pytestmark = pytest.mark.slow

_UNREACHABLE = re.compile(r"connection|name resolution|max retries|timed out|proxy", re.IGNORECASE)

_META = """if True:
    import json, sys
    from pathlib import Path
    from llama_models.llama4.tokenizer import Tokenizer
    model, given, out = map(Path, sys.argv[1:])
    tokenizer, found = Tokenizer(model), []
    for text in json.loads(given.read_text()):
        plain = tokenizer.encode(text, bos=True, eos=False)
        special = tokenizer.encode(text, bos=True, eos=False, allowed_special="all")
        parts = [tokenizer.decode(plain[:stop]) for stop in range(len(plain) + 1)] if len(plain) < 40 else []
        found.append([plain, special, parts])
    out.write_text(json.dumps(found))
"""
"""Ids of text in which special tokens are text, and are themselves; what is read of the first ids, of all numbers."""

TEXTS = [
    *("", " ", "  ", "\n", "\r\n", "\t\t", " \n ", "\n\n\n\n", " " * 100, "\n" * 77, " \t" * 500, "\u00a0\u3000\u2003"),
    "a  b   c    d \n e \r\n\r\n f\t\tg   ",
    "x = {'a': [1, 2.5e-10], \"b\": None}  # comment\n\tif x != y:\n\t\treturn x\n",
    "Don't WE'LL they'Re I'M you'd it'S O'Neill rock'n'roll ''s 's 'll",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F 1e-5 ١٢٣٤٥ १२३४ ⅷ ½ ² ①",
    "Grüße, naïve café, Ελληνικά, Привет мир, שלום עולם, مرحبا بالعالم, สวัสดีชาวโลก, नमस्ते दुनिया",
    "你好,世界!今天天气真好。日本語の文章、カタカナとひらがな。한국어 문장입니다.𠀀𪛖㐀",
    "🙂😀👍🏽👨‍👩‍👧‍👦🏳️‍🌈🇩🇪🇯🇵1️⃣ ❤️‍🔥 ☺︎ 🫠🫨",
    "e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343\u036a\u0302A\u0334L\u0321G\u0337O\u0321",
    " \u0301 \u0301\u0301x \u200d\u200b\ufeff\u2060",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308",
    "\u01c5 \u01c8 \u1f88 \u02b0 \ufb01 \u0130stanbul \u00df \u1e9e \u017f \u0149",
    "<|begin_of_text|><|header_start|>user<|header_end|>\n\nHi<|eot|><|image|><|patch|><|python_start|>",
    "<|eot|", "<|eot|><|eot|>", "a<|eot|>b", "<|eot |>", "<|EOT|>", "<|finetune_right_pad|>",
    "<|reserved_special_token_903|>", "< |eot|> <|eot|> .",
    "<|vision_reserved_special_token_1047|><|reasoning_thinking_start|>x<|reasoning_thinking_end|>",
    "antidisestablishmentarianism" * 100, "a" * 5000, "ab" * 3000, "0" * 1000, "!?" * 700,
    "é" * 999, "日" * 1500, "🙂" * 300,
    "\x00\x01\x02\x7f\x80\x9f\xad", "\ufffd\ufffe\uffff\U0010ffff", "\u2028\u2029\x0b\x0c\x1c\x85",
    "http://example.org/a/b?c=d&e=f#g /usr/local/bin //// \\\\ a/b\n/\n", "...!!!???\n\n---===***\r\n$$$ €£¥ ∑∫√∞≠ →⇒",
]  # fmt: skip


def random_texts(count: int) -> list[str]:
    """Characters of many scripts, and of the ways in which a text is cut: letters, digits, spaces, lines, marks."""
    rng = random.Random(0)
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xD80),
              (0x1E00, 0x2000), (0x2000, 0x2BFF), (0x3040, 0x3100), (0x4E00, 0x9FA6), (0xAC00, 0xD7A4),
              (0x1F300, 0x1F650), (0x10000, 0x10FFFF)]  # fmt: skip
    cuts = [
        " ",
        "  ",
        "\n",
        "\r\n",
        "'s",
        "'LL",
        "1",
        "99",
        "a",
        "B",
        "the",
        " The",
        "/",
        "\u0301",
        "\u200d",
        "<|eot|>",
    ]

    def one() -> str:
        return chr(rng.randrange(*rng.choice(blocks))) if rng.random() < 0.5 else rng.choice(cuts)

    return ["".join(one() for _ in range(rng.randrange(1, 30))) for _ in range(count)]


def fetch(packages: list[str], target: Path) -> None:
    """Install packages alone into a folder; skips where the package index cannot be reached."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "1", "--timeout", "30", "--target", str(target), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and _UNREACHABLE.search(done.stderr):
        pytest.skip(f"the package index cannot be reached, which has {' and '.join(packages)}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Texts, our tokenizer of the released file, and what Meta's says of each text."""
    root = tmp_path_factory.mktemp("released")
    fetch(["llama-models", "tiktoken", "regex"], root / "packages")
    model = root / "packages/llama_models/llama4/tokenizer.model"
    shutil.copy(model, root / "tokenizer.model")
    texts = TEXTS + random_texts(3000)
    (root / "texts").write_text(json.dumps(texts))
    program = f"import sys; sys.path.insert(0, {str(root / 'packages')!r})\n{_META}"
    subprocess.run([sys.executable, "-c", program, model, root / "texts", root / "ids"], check=True)
    return texts, Tokenizer.from_file(str(write_tokenizer_json(root))), json.loads((root / "ids").read_text())


def test_ids(released: Any) -> None:
    texts, tokenizer, found = released
    assert tokenizer.get_vocab_size() == 202048
    for text, (plain, special, _) in zip(texts, found, strict=True):
        tokenizer.encode_special_tokens = True
        assert tokenizer.encode(text).ids == plain, text[:100]
        tokenizer.encode_special_tokens = False
        assert tokenizer.encode(text).ids == special, text[:100]


def test_ids_that_end_within_a_character(released: Any) -> None:
    """What is no UTF-8 is read as the same replacement characters."""
    _, tokenizer, found = released
    cut = 0
    for plain, _, parts in found:
        for stop, part in enumerate(parts):
            assert tokenizer.decode(plain[:stop], skip_special_tokens=False) == part
            cut += part.endswith("\ufffd")
    assert cut > 100
