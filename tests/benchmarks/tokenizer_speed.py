"""Tokenizers side by side: the native library and the Python package, loading and encoding.

    PYTHONPATH=.:tests/support python tests/benchmarks/tokenizer_speed.py [DIRECTORY ...]

Each directory has a tokenizer.json; without any, it is the example's and Llama 4's, made from `llama-models` of the
package index. Times are medians, of the two in turns, so that what else the machine does slows both.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from l4export.checkpoint import write_tokenizer_json
from native_library import check, native_library
from native_tokenizer import NativeTokenizer

ROOT = Path(__file__).parents[2]
RUNS = 7
MEGABYTE = 1 << 20


def texts() -> dict[str, str]:
    """A sentence, and a megabyte each of English, code, Chinese and Japanese prose, and characters at random."""
    rng = random.Random(0)
    prose = (ROOT / "l4export/calibration/default_text.txt").read_text()
    english = prose + "".join(path.read_text() for path in sorted(ROOT.glob("docs/**/*.md")))
    code = "".join(path.read_text() for path in sorted(ROOT.glob("**/*.py")))
    words = ["今天", "天气", "真好", "你好", "世界", "日本語", "の", "文章", "カタカナ", "ひらがな", "中文", "测试"]
    cjk = "".join(rng.choice(words) if rng.random() < 0.9 else rng.choice(",。!\n") for _ in range(MEGABYTE // 6))
    odd = "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(MEGABYTE // 3))
    sentence = "Hello, how are you today? I'm fine."
    whole = {"English": english, "code": code, "CJK": cjk, "CJK at random": odd}
    return {"a sentence": sentence, **{name: (text * 20)[:MEGABYTE] for name, text in whole.items()}}


def in_turns(*calls: Callable[[], object]) -> list[float]:
    """The median seconds of each call."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(RUNS):
        for call, times in zip(calls, taken, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in taken]


def encoder(native: NativeTokenizer, text: str, count: int) -> Callable[[], None]:
    """Encodes a text `count` times, without making a list of the ids."""
    data = text.encode()
    ids, number = (ctypes.c_int32 * (len(data) + 1))(), ctypes.c_size_t()
    arguments = (native.handle, data, ctypes.c_size_t(len(data)), ctypes.c_uint32(0), ids, ctypes.c_size_t(len(ids)))

    def call() -> None:
        for _ in range(count):
            check(native_library().l4_tokenizer_encode(*arguments, ctypes.byref(number)))

    return call


def compare(directory: Path) -> None:
    """Print a table of one tokenizer."""
    path = directory / "tokenizer.json"
    size = path.stat().st_size / 1e6
    print(f"{directory.name} ({size:.1f} MB)              native       Python")
    loads = in_turns(lambda: NativeTokenizer(directory), lambda: Tokenizer.from_file(str(path)))
    print(f"{'open':24}{loads[0] * 1e3:10.1f} ms{loads[1] * 1e3:10.1f} ms{loads[1] / loads[0]:8.1f} times")
    native, python = NativeTokenizer(directory), Tokenizer.from_file(str(path))
    for name, text in texts().items():
        assert native.encode(text, False) == python.encode(text, add_special_tokens=False).ids, name
        count = max(1, 20_000 // len(text))

        def by_python(text: str = text, count: int = count) -> None:
            for _ in range(count):
                python.encode(text, add_special_tokens=False)

        seconds = [taken / count for taken in in_turns(encoder(native, text, count), by_python)]
        rates = [len(text.encode()) / taken / 1e6 for taken in seconds]
        print(f"{name:24}{rates[0]:10.1f} MB/s{rates[1]:8.1f} MB/s{rates[0] / rates[1]:8.1f} times")


def llama4(folder: Path) -> Path:
    """Llama 4's tokenizer in the form in which it is released: 28 MB."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "packages")]
    subprocess.run([*install, "llama-models"], check=True)
    made = folder / "made"
    made.mkdir()
    shutil.copy(folder / "packages/llama_models/llama4/tokenizer.model", made)
    (folder / "llama4").mkdir()
    Tokenizer.from_file(str(write_tokenizer_json(made))).save(str(folder / "llama4/tokenizer.json"))
    return folder / "llama4"


def main() -> None:
    """Compare the tokenizers of the directories that are named."""
    if sys.argv[1:]:
        for name in sys.argv[1:]:
            compare(Path(name))
        return
    compare(ROOT / "examples/kjv/model")
    with tempfile.TemporaryDirectory() as folder:
        compare(llama4(Path(folder)))


if __name__ == "__main__":
    main()
