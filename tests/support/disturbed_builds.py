"""Builds that are killed, and builds whose source is replaced by one that looks the same: never a mixture.

    python tests/support/disturbed_builds.py --kills 100 --swaps 50 --seed 0

Every build is a process of its own, forked from this one, which has imported everything and started nothing. Its units
are small and its writes slow, so that moments chosen at random fall on every part of it. What comes out is compared,
byte by byte, with the engine of a build that nobody disturbed. Exits with 1 and names the experiments that went wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from l4export.storage.journal import has_progress

IDS = "ids.json"
"""In the options of a build: the file of token ids that is calibrated on."""

CASES: dict[str, tuple[str, ...]] = {
    "float": (),
    "fp16": ("--dtype", "fp16"),
    "int8": ("--quant", "int8"),
    "int4": ("--quant", "int4"),
    "int4 fitted": ("--quant", "int4", "--fit-scales"),
    "fp8": ("--target", "onnx", "--quant", "fp8"),
    "calibrated": ("--quant", "int4", "--calibrate", IDS),
    "auto": ("--quant", "auto", "--bits-per-weight", "7", "--calibrate", IDS),
    "kv int8": ("--kv-dtype", "int8", "--kv-calibrate", IDS),
    "kv int4": ("--quant", "int4", "--kv-dtype", "int4", "--kv-calibrate", IDS),
    "fp8 activations": ("--target", "onnx", "--quant", "fp8", "--activations", "fp8", "--calibrate", IDS),
    "concat": ("--quant", "int8", "--kv-layout", "concat"),
    "chunked": ("--quant", "int4", "--kv-layout", "chunked"),
    "layers": ("--layers", "1:3"),
    "cuda": ("--target", "ort-cuda", "--kv-layout", "chunked"),
}

_GRACE = 120.0
"""Seconds after which a build that does not end counts as hanging."""

Engine = dict[str, bytes]


class Workplace:
    """Checkpoints that look the same, and what an undisturbed build makes of each.

    `a` and `b` differ in weights alone, `a` and `c` in weights and in the generation defaults. `cases` are those that a
    build may have beside the one that is tried.
    """

    def __init__(self, root: Path, cases: Sequence[str]) -> None:
        from l4export.checkpoint.sample import write_sample

        self.root, self.cases = root, cases
        for name, seed in (("a", 1), ("b", 2), ("c", 2)):
            write_sample(root / name, "scout", "tiny", seed=seed)
            (root / name / "generation_config.json").write_text(json.dumps({"top_k": int(name == "c")}))
            for file in (root / name).iterdir():
                os.utime(file, (1, 1))
        (root / IDS).write_text(json.dumps(np.random.default_rng(0).integers(0, 256, 160).tolist()))
        self._undisturbed: dict[tuple[str, str], tuple[Engine, float]] = {}
        self.place, self.checkpoint = root / "place", root / "place" / "ck"

    def undisturbed(self, case: str, source: str) -> Engine:
        """The files of the engine, by name."""
        return self._built(case, source)[0]

    def seconds(self, case: str) -> float:
        """What a build takes."""
        return self._built(case, "a")[1]

    def _built(self, case: str, source: str) -> tuple[Engine, float]:
        if (case, source) not in self._undisturbed:
            engine, began = self.root / f"{case}-{source}", time.monotonic()
            code = Build(self, case, checkpoint=self.root / source, engine=engine).wait()
            assert code == 0, f"{case}: undisturbed, and exits with {code}: {self.log()}"
            self._undisturbed[case, source] = contents(engine), time.monotonic() - began
        return self._undisturbed[case, source]

    def clear(self) -> None:
        """An empty place with checkpoint `a`."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        self._copy("a", self.checkpoint)

    def _copy(self, source: str, target: Path) -> None:
        shutil.copytree(self.root / source, target)

    def swap(self, how: str) -> str:
        """Put another checkpoint in the place of `a`, with the same names, sizes and modification times; its name."""
        if how == "directory":
            incoming = self.place / "incoming"
            self._copy("c", incoming)
            self.checkpoint.rename(self.place / "old")
            incoming.rename(self.checkpoint)
            shutil.rmtree(self.place / "old")
            return "c"
        path, data = self.checkpoint / "model.safetensors", (self.root / "b" / "model.safetensors").read_bytes()
        if how == "in place":
            with open(path, "r+b") as file:
                file.write(data)
        else:
            (self.checkpoint / "incoming").write_bytes(data)
            os.utime(self.checkpoint / "incoming", (1, 1))
            (self.checkpoint / "incoming").replace(path)
        os.utime(path, (1, 1))
        return "b"

    def log(self) -> str:
        """What the last build said."""
        return (self.root / "log").read_text()[-2000:]


class Build:
    """A build that is under way in a process of its own."""

    def __init__(
        self, work: Workplace, case: str, *more: str, checkpoint: Path | None = None, engine: Path | None = None
    ) -> None:
        words = [str(work.root / word) if word == IDS else word for word in CASES[case]]
        paths = [str(checkpoint or work.checkpoint), "-o", str(engine or work.place / "e")]
        arguments = ["build", *paths, "--max-context", "64", "--jobs", "2", *words, *more]
        self.process = os.fork()
        if self.process == 0:
            _build(arguments, work.root / "log")

    def kill(self, after: float) -> int:
        """Kill it after so many seconds, if it has not ended; returns its exit code, -9 if it was killed."""
        time.sleep(after)
        os.kill(self.process, signal.SIGKILL)  # nobody has waited for it: the number is still its own
        return self._ended(os.waitpid(self.process, 0)[1])

    def wait(self) -> int:
        """Its exit code."""
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                return self._ended(status)
            time.sleep(0.005)
        self.kill(0)
        raise AssertionError("a build hangs")

    def _ended(self, status: int) -> int:
        return os.waitstatus_to_exitcode(status)


def _build(arguments: list[str], log: Path) -> None:
    """The command line, with small units and slow writes; does not return."""
    from l4export.cli import main
    from l4export.weights import placement

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    placement._UNIT_BYTES = 20_000
    os.pwrite = _slow(os.pwrite)
    code = 70
    try:
        main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _slow(function: Callable[..., int]) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        time.sleep(0.002)
        return function(*arguments)

    return call


def contents(path: Path) -> Engine:
    """The files of a directory."""
    return {file.name: file.read_bytes() for file in path.iterdir()}


def check_left(work: Workplace) -> None:
    """Nothing but the engine; or, beside one that was up to date, work that was begun with other options."""
    left = set(os.listdir(work.place)) - {"ck", "e"}
    begun = has_progress(work.place / ".e.partial") or has_progress(work.place / ".e.partial" / "calibration")
    assert not left or (left == {".e.partial"} and begun and "is up to date" in work.log()), f"left behind: {left}"


def check_kill(work: Workplace, rng: random.Random, case: str) -> str:
    """Kill a build one to three times, sometimes one with other options or over an engine; then let it end.

    Returns what was done, for the count.

    Raises:
        AssertionError: an engine that is not whole, or other bytes than of an undisturbed build.
    """
    work.clear()
    expected, engine = work.undisturbed(case, "a"), work.place / "e"
    first = rng.choice(work.cases) if rng.random() < 0.25 else case
    old: Engine | None = None
    if rng.random() < 0.3:
        old = work.undisturbed(rng.choice(work.cases), rng.choice("ab"))
        engine.mkdir()
        for name, data in old.items():
            (engine / name).write_bytes(data)
    killed = 0
    for attempt in range(rng.randint(1, 3)):
        options = first if attempt == 0 else case
        code = Build(work, options, "--force").kill(rng.uniform(0, 1.05 * work.seconds(options)))
        killed += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), f"exit code {code}: {work.log()}"
        whole = [None, old, expected, work.undisturbed(first, "a")]
        assert (contents(engine) if engine.exists() else None) in whole, "an engine that is not whole"
    left = (work.place / ".e.partial" / "journal").exists()
    code = Build(work, case, "--force").wait()
    assert code == 0, f"exit code {code}: {work.log()}"
    assert contents(engine) == expected, (
        f"other bytes: {[n for n in expected if contents(engine).get(n) != expected[n]]}"
    )
    check_left(work)
    return f"killed {killed} times" + (", over an engine" if old else "") + (", something was left" if left else "")


def check_swap(work: Workplace, rng: random.Random, case: str) -> str:
    """Replace the checkpoint by one that looks the same, during a build, between a kill and the next build, or before a
    rebuild; then let a build end.

    Returns what was done, for the count.

    Raises:
        AssertionError: a build that ended well is that of neither checkpoint, or the last one not that of the new one.
    """
    work.clear()
    engine = work.place / "e"
    how, when = (
        rng.choice(["in place", "renamed", "directory"]),
        rng.choice(["during", "after a kill", "before a rebuild"]),
    )
    moment = rng.uniform(0, 1.05 * work.seconds(case))
    done = f"{when}, {how}"
    if when == "during":
        running = Build(work, case)
        time.sleep(moment)
        new = work.swap(how)
        code = running.wait()
        assert code in (0, 2, -signal.SIGBUS), f"exit code {code}: {work.log()}"
        done += f": exit code {code}"
    elif when == "after a kill":
        Build(work, case).kill(moment)
        new = work.swap(how)
    else:
        before = rng.choice(work.cases)  # with other options weights may be taken over
        assert Build(work, before).wait() == 0, work.log()
        new = work.swap(how)
        assert contents(engine) == work.undisturbed(before, "a")
    if when != "before a rebuild" and engine.exists():
        assert contents(engine) in [work.undisturbed(case, "a"), work.undisturbed(case, new)], f"a mixture ({done})"
    code = Build(work, case, "--force").wait()
    assert code == 0, f"exit code {code}: {work.log()}"
    assert contents(engine) == work.undisturbed(case, new), f"not that of the new checkpoint ({done})"
    check_left(work)
    return done


def run(
    kills: int, swaps: int, seed: int, root: Path, cases: Sequence[str] = tuple(CASES)
) -> tuple[Counter[str], list[str]]:
    """So many experiments of both kinds, over the cases in turn: what was done, how often, and what went wrong."""
    import l4export.compiler.build
    import l4export.quantization.gptq_kernel
    import l4export.quantization.kernels
    import l4export.runtimes.onnxruntime.engine

    if any(IDS in CASES[case] for case in cases):  # imported once, for all builds
        import l4export.reference.streamed_model  # noqa: F401

    work, done, faults = Workplace(root, cases), Counter[str](), list[str]()
    for check, count in ((check_kill, kills), (check_swap, swaps)):
        for number in range(count):
            case = cases[number % len(cases)]
            try:
                done[check(work, random.Random(f"{seed} {check.__name__} {number}"), case)] += 1
            except AssertionError as error:
                faults.append(f"{check.__name__} {number} ({case}), seed {seed}: {error}")
                print(faults[-1], flush=True)
    return done, faults


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        done, faults = run(arguments.kills, arguments.swaps, arguments.seed, Path(root), arguments.cases)
    for what, count in sorted(done.items()):
        print(f"{count:4d}  {what}")
    print(f"{sum(done.values())} right, {len(faults)} wrong", *faults, sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
