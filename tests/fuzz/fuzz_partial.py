"""Classes `partial` and `calibration`: what a build that was cut short has left, changed before the next one starts."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from fuzz_case import Case, Subject
from fuzz_files import Files, read_files, replace_file, small_file
from fuzz_json import damaged_text, dumps, mutate_json
from fuzz_valid import small_checkpoint

__all__ = ["CalibrationSubject", "PartialSubject"]

_PARTIAL = ".engine.partial"
_PARTS = (0.2, 0.6, 0.99)
"""Of the bytes of weights."""


class PartialSubject(Subject):
    """What interrupted builds leave; a build that goes on must end as if nothing had happened, or be refused."""

    name = "partial"
    builds: ClassVar[dict[str, dict[str, Any]]] = {"plain": {}, "int8": {"quant": "int8", "kv_layout": "chunked"}}

    def prepare(self) -> None:
        """For each kind of build the engine that it makes, and what it would have left if it had been killed."""
        small_checkpoint(self.valid / "checkpoint", "maverick")
        (self.valid / "ids").write_text(" ".join(str(7 * index % 240) for index in range(200)))
        for name in self.builds:
            self._build(name, self.valid / "engine", **self._snapshots(name))
            (self.valid / "engine").rename(self.valid / name)

    def _snapshots(self, name: str) -> dict[str, Callable[..., None]]:
        """What a build is watched with: its directory is copied as it is at several moments."""

        def keep(moment: object) -> None:
            target = self.valid / f"{name}-{moment}.partial"
            if not target.exists():
                shutil.copytree(self.valid / _PARTIAL, target)

        def on_progress(written: int, total: int) -> None:
            for part in _PARTS:
                if written > part * total:
                    keep(part)

        def on_notice(line: str) -> None:
            if line.startswith("layer 1 "):
                keep("calibrating")

        return {"on_progress": on_progress, "on_notice": on_notice}

    def _build(self, name: str, engine: Path, force: bool = False, **watched: Callable[..., None]) -> None:
        import l4export
        from l4export.quantization.policy import standard_policy

        given = {"max_context": 64, "jobs": 1, "force": force, **self.builds[name]}
        if kind := given.pop("quant", None):
            given["policy"] = standard_policy(kind)
        if given.pop("calibrate", False):
            given["calibrate"] = self.valid / "ids"
        l4export.build(self.valid / "checkpoint", engine, l4export.BuildOptions(**given), **watched)

    def begin(self) -> None:
        """What the engines are, file by file."""
        self.engines: dict[str, Files] = {name: read_files(self.valid / name) for name in self.builds}
        self.snapshots = sorted(path.name.removesuffix(".partial") for path in self.valid.glob("*.partial"))

    def make(self, rng: random.Random, place: Path) -> Case:
        """One to three changes of what an interrupted build has left."""
        snapshot = rng.choice(self.snapshots)
        name, partial = snapshot.split("-")[0], place / _PARTIAL
        shutil.copytree(self.valid / f"{snapshot}.partial", partial)
        (place / "victim").mkdir()
        (place / "victim" / "thesis").write_text("years of work")
        foreign: list[Path] = []
        what = [snapshot]
        for _ in range(rng.choice([1, 1, 2, 3])):
            what.append(_change(partial, foreign, rng))
        force = rng.random() < 0.2
        if force:
            shutil.copytree(self.valid / rng.choice(sorted(self.builds)), place / "engine")
        if rng.random() < 0.05:
            what.append(_replace(partial, rng))
            foreign = []
        theirs = {path: small_file(path) for path in foreign if path.is_file() and not path.is_symlink()}
        return Case(lambda: self._use(name, place / "engine", force, theirs), what, "engine", (_PARTIAL,))

    def _use(self, name: str, engine: Path, force: bool, foreign: dict[Path, bytes]) -> None:
        try:
            self._build(name, engine, force)
        finally:
            lost = [path.name for path, data in foreign.items() if not path.is_file() or small_file(path) != data]
            assert not lost, f"{lost[0]} was not written by a build and is lost"
        made = read_files(engine)
        differ = sorted(
            file for file in made.keys() | self.engines[name].keys() if made.get(file) != self.engines[name].get(file)
        )
        assert not differ, f"{differ} differ from those of a build that nobody disturbed"
        assert force or not engine.with_name(_PARTIAL).is_dir(), "the directory of the unfinished build is left"


class CalibrationSubject(PartialSubject):
    """The same for a build that calibrates its weights, also while it does."""

    name = "calibration"
    builds: ClassVar[dict[str, dict[str, Any]]] = {"codes": {"quant": "int4", "calibrate": True}}

    def begin(self) -> None:
        """Load PyTorch, too."""
        import torch

        super().begin()
        torch.set_num_threads(1)  # for a tiny model more only wait for each other
        engine = self.valid / f"engine-{os.getpid()}"
        self._build("codes", engine)
        shutil.rmtree(engine)


def _change(partial: Path, foreign: list[Path], rng: random.Random) -> str:
    """Change something in the directory of an unfinished build; files that no build writes are added to `foreign`."""
    way = rng.randrange(10)
    journals = [path for path in partial.rglob("journal") if path.is_file() and not path.is_symlink()]
    files = [path for path in sorted(partial.rglob("*")) if not path.is_dir() and path.name != "journal"]
    if way < 4 and journals:
        return _change_journal(rng.choice(journals), rng)
    if way < 7 and files:
        return replace_file(rng.choice(files), rng)
    if way == 7:
        folder = rng.choice([partial, *(path for path in partial.iterdir() if path.is_dir() and not path.is_symlink())])
        name = rng.choice(["thesis.txt", "decoder_notes.txt", ".git", "é\x1b", "journal.bak", "layer-00000.notes"])
        if not os.path.lexists(folder / name):
            foreign.append(folder / name)
            foreign[-1].write_text("years of work")
        return f"with {folder.name}/{name}"
    if way == 8:
        link = partial / rng.choice(
            ["decoder-00001-of-00001.data", "decoder.onnx", "tokenizer.json", "manifest.json.partial"]
        )
        if not link.is_dir():
            link.unlink(missing_ok=True)
            link.symlink_to("../victim/thesis")
        return f"{link.name} is a link to a file elsewhere"
    name = rng.choice(["calibration", "decoder", "decoder.onnx", "manifest.json", "manifest.json.partial"])
    path = partial / name
    if path.is_dir():
        shutil.rmtree(path)
        path.symlink_to("../victim")
        return f"{name} is a link to a directory elsewhere"
    path.unlink(missing_ok=True)
    if rng.random() < 0.5:
        path.mkdir()
        (path / "x").symlink_to("../../victim")
        return f"{name} is a directory"
    path.write_text(rng.choice(["", "{}", "x" * 1000]))
    return f"{name} is a file"


def _change_journal(path: Path, rng: random.Random) -> str:
    text = small_file(path).decode(errors="replace")
    head, *lines = text.split("\n")
    way = rng.randrange(9)
    if way == 0:
        try:
            changed, told = mutate_json(json.loads(head), rng)
        except (ValueError, RecursionError):
            changed, told = {}, "empty"
        head = dumps(changed)
    elif way == 1:
        data, told = damaged_text(text, rng)
        path.write_bytes(data)
        return f"journal: {told}"
    elif way == 2:
        told = replace_file(path, rng)
        return told
    elif way == 3:
        torn = rng.choice(["12 0", "3 ", "5", "7 1c291ca3 ", "\0" * 4096, "0 1c291ca", "-1 00000000"])
        lines[-1:], told = [torn], "torn line"
    elif way == 4:
        more = ["999999999 00000000", "12 00000000 11111111 22222222", "0", "00000000000 1c291ca3", "1  2", "é"]
        lines[rng.randrange(max(1, len(lines))) : 0] = [rng.choice(more)]
        told = "another line"
    elif way == 5 and len(lines) > 1:
        index = rng.randrange(len(lines) - 1)
        lines[index] = lines[index][:-1] + rng.choice("0123456789abcdefg")
        told = "another checksum"
    elif way == 6:
        rng.shuffle(lines)
        lines, told = [line for line in lines if line] + [""], "other order"
    elif way == 7:
        lines, told = [*lines[:-1], *lines[:-1], ""], "each line twice"
    else:
        lines, told = lines[rng.randrange(max(1, len(lines))) :], "lines are missing"
    path.write_text("\n".join([head, *lines]), errors="surrogateescape")
    return f"journal: {told}"


def _replace(partial: Path, rng: random.Random) -> str:
    """Something else in place of the directory."""
    shutil.rmtree(partial)
    kind = rng.choice(["victim", "nothing", "file", "empty"])
    if kind == "file":
        return f"{kind}: {replace_file(partial, rng)}"
    if kind == "empty":
        partial.mkdir()
    else:
        partial.symlink_to(kind)
    return f"instead of the directory: {kind}"
