"""Engines for CUDA through the native library, on the GPU and on the CPU side by side.

    python tests/gpu/native_on_gpu.py LIBL4EXPORT LIBONNXRUNTIME ENGINE...

Nothing is built, and NumPy is all that it needs, so that it runs on a machine without package registries. The first
opening judges the GPU by the check graph. Then: ragged prompts, ends of chunks, steps, fork, copy_row, files in
both directions, rewinding, cancelling, threads, an image where the engine sees any, and too many rows. Exit code 1 if
anything departs by more than float16 explains.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import tempfile
import threading
import time
import traceback
import types
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
# the tests' modules look for ONNX Runtime in Python's package; here it is given
_package = Path(tempfile.mkdtemp()) / "onnxruntime"
(_package / "capi").mkdir(parents=True)
(_package / "capi/libonnxruntime.so.1").symlink_to(Path(sys.argv[2]).resolve())
sys.modules["onnxruntime"] = types.SimpleNamespace(__file__=str(_package / "__init__.py"))  # type: ignore[assignment]

import native_library  # noqa: E402

_library = ctypes.CDLL(str(Path(sys.argv[1]).resolve()))
_library.l4_last_error.restype = _library.l4_version.restype = ctypes.c_char_p
native_library.native_library = functools.cache(lambda: _library)  # type: ignore[assignment]

import native_images  # noqa: E402
import native_session  # noqa: E402
from native_library import NativeError, check  # noqa: E402
from native_session import NativeEngine, NativeSession  # noqa: E402

native_session.ONNXRUNTIME = Path(sys.argv[2]).resolve()

BOUND = 2e-2
"""Of the largest logit; products of float16 are added up in another order. 1.3e-2 was seen over ends of chunks."""
_FIRST_TEXT = 20
"""Ids below may be special, such as the image token of examples/shapes."""


class Twins:
    """A session on the GPU and one on the CPU, which are asked the same."""

    def __init__(self, gpu: NativeSession, cpu: NativeSession) -> None:
        self.gpu, self.cpu = gpu, cpu

    def append(self, what: str, rows: list[list[int]], last_only: bool = False, images: list | None = None) -> None:
        """Compare the logits, and print how far they are from each other."""
        found, due = (each.append(rows, last_only, images) for each in (self.gpu, self.cpu))
        assert (np.isnan(found) == np.isnan(due)).all(), what
        worst = float(np.nanmax(np.abs(found - due)) / np.nanmax(np.abs(due)))
        print(f"  {what}: {worst:.1e} of the largest logit", flush=True)
        assert worst < BOUND, what


def prove(path: str) -> None:
    """All of it, for one engine."""
    began = time.monotonic()
    NativeEngine(path, provider="cuda")
    first, began = time.monotonic() - began, time.monotonic()
    gpu = NativeEngine(path)
    print(f"{path}: {gpu.info.provider.decode()}, opened in {first:.1f} s, again in {time.monotonic() - began:.1f} s")
    cpu = NativeEngine(path, provider="cpu")
    random, most = np.random.default_rng(0), gpu.info.max_context
    ids = random.integers(_FIRST_TEXT, gpu.info.vocab_size, (2, min(90, most - 6))).tolist()
    twins = Twins(gpu.session(2), cpu.session(2))
    prompts(twins, ids)
    with tempfile.TemporaryDirectory() as folder:
        twins.gpu.save(f"{folder}/gpu")
        twins.cpu.save(f"{folder}/cpu")
        crossed = Twins(gpu.load_session(f"{folder}/cpu"), cpu.load_session(f"{folder}/gpu"))
        crossed.append("files, each of the other", [[1], [2]])
    single = Twins(gpu.session(1), cpu.session(1))
    single.gpu.copy_row(0, twins.gpu, 0)
    single.cpu.copy_row(0, twins.cpu, 0)
    single.append("copy_row", [[5]])
    for session in (twins.gpu, twins.cpu):
        session.rewind([1, 2])
    twins.append("after rewinding", [[3, 4], [5]])
    rest = random.integers(_FIRST_TEXT, gpu.info.vocab_size, max(1, min(400, most - max(twins.gpu.lengths) - 4)))
    cancelled(twins, rest.tolist())
    in_threads(gpu, ids[0][:40])
    speed(gpu.session(1), ids[0][:8], min(200, most - 10))
    if gpu.info.sees_images:
        with_an_image(path, Twins(gpu.session(1), cpu.session(1)))
    try:
        gpu.session(1 << 20)  # of a tiny engine they fit
    except NativeError as error:
        print(f"  too many rows: {error}")


def prompts(twins: Twins, ids: list[list[int]]) -> None:
    """Rows of different lengths, together and alone, over ends of chunks."""
    twins.append("prompts", [ids[0][:21], ids[1][:7]])
    twins.append("a step of both", [ids[0][21:22], ids[1][7:8]])
    twins.append("a step of one", [[], ids[1][8:9]])
    twins.append("over ends of chunks", [ids[0][22:60], []], True)
    for at in range(4):
        twins.append("a step", [ids[0][60 + at : 61 + at], ids[1][9 + at : 10 + at]], True)
    Twins(twins.gpu.fork([1, 0]), twins.cpu.fork([1, 0])).append("fork", [[1], [2]])


def cancelled(twins: Twins, rest: list[int]) -> None:
    """Calls that are ended at some moment leave their session as it was."""
    count = 0
    for delay in (0.001, 0.002, 0.005, 0.01, 0.02) * 2:
        trial = Twins(twins.gpu.fork(), twins.cpu.fork())
        stopper = threading.Timer(delay, trial.gpu.cancel)
        stopper.start()
        try:
            trial.gpu.append([rest, []], True)
        except NativeError as error:
            assert error.status == 130, error
            count += 1
            trial.append("after cancelling", [[3], [5]])
        stopper.join()
    print(f"  cancelled {count} of 10 calls")


def in_threads(gpu: NativeEngine, prompt: list[int]) -> None:
    """Four sessions of one engine at once."""
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(gpu.session(1).append([prompt], True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(logits, found[0]) for logits in found)
    print("  four threads: equal")


def speed(session: NativeSession, prompt: list[int], steps: int) -> None:
    """Steps a second of one row."""
    session.append([prompt], True)
    began = time.monotonic()
    for _ in range(steps):
        session.append([[_FIRST_TEXT]], True)
    print(f"  {steps / (time.monotonic() - began):.0f} steps a second")


def with_an_image(path: str, twins: Twins) -> None:
    """A prompt that shows a picture."""
    tokenizer, placeholder = ctypes.c_void_p(), ctypes.c_int32()
    check(_library.l4_tokenizer_open(path.encode(), ctypes.byref(tokenizer)))
    check(_library.l4_tokenizer_token_id(tokenizer, b"<|image|>", ctypes.byref(placeholder)))
    picture = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    images = native_images.NativeImages(path, [picture])
    ids = images.expand(tokenizer, [1, 2, placeholder.value, 3])
    twins.append("a prompt with an image", [ids], images=[images.handle])
    _library.l4_tokenizer_close(tokenizer)


def main() -> int:
    """Prove each engine, whatever becomes of the others."""
    failed = 0
    for path in sys.argv[3:]:
        try:
            prove(path)
        except Exception:
            failed += 1
            traceback.print_exc()
    print(f"{failed} of {len(sys.argv) - 3} engines failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
