"""Class `written`: checkpoints that were written for other programs, changed before they are verified and replaced."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from pathlib import Path

from fuzz_case import Case, Subject
from fuzz_files import Files, replace_file, small_file
from fuzz_json import damaged_text, dumps, mutate_json
from fuzz_valid import small_checkpoint

__all__ = ["WrittenSubject"]

_MANIFEST = "l4export/manifest.json"
_WORDS = [
    "../victim/thesis",
    "/etc/passwd",
    "l4export/../config.json",
    "a/b/c",
    "config.json",
    "l4export.checkpoint",
    1,
]


class WrittenSubject(Subject):
    """What is verified and then replaced with `--force`: either all of it is l4export's own, or it is refused."""

    name = "written"

    def prepare(self) -> None:
        """A checkpoint, and what is written of it."""
        small_checkpoint(self.valid / "checkpoint", "scout")
        self._build(self.valid / "out", force=False)

    def _build(self, out: Path, force: bool) -> None:
        import l4export
        from l4export.quantization.policy import standard_policy

        policy = standard_policy("int8", of_mlps_alone=True)
        options = l4export.BuildOptions(target="compressed-tensors", policy=policy, jobs=1, force=force)
        l4export.build(self.valid / "checkpoint", out, options)

    def begin(self) -> None:
        """What was written, file by file; and the kernels, which are loaded once."""
        self.written = _contents(self.valid / "out")
        again = self.valid / f"again-{os.getpid()}"
        self._build(again, force=False)
        shutil.rmtree(again)

    def make(self, rng: random.Random, place: Path) -> Case:
        """One or two changes."""
        shutil.copytree(self.valid / "out", place / "out")
        (place / "victim").mkdir()
        (place / "victim" / "thesis").write_text("years of work")
        what, foreign = [], list[Path]()
        for _ in range(rng.choice([1, 1, 2])):
            what.append(_change(place / "out", foreign, rng))
        theirs = {path: small_file(path) for path in [*foreign, place / "victim" / "thesis"] if path.is_file()}
        return Case(lambda: self._use(place / "out", theirs), what, spent=("out",))

    def _use(self, out: Path, foreign: dict[Path, bytes]) -> None:
        from l4export.engine.checkpoint_manifest import load_checkpoint_manifest, verify_checkpoint
        from l4export.errors import L4Error

        try:
            listed, found = verify_checkpoint(out).files, _contents(out)
        except L4Error:
            pass
        else:
            assert all(len(found[name]) == record.bytes for name, record in listed.items()), "intact, and not as listed"
        try:
            self._build(out, force=True)
        finally:
            lost = [path.name for path, data in foreign.items() if not path.is_file() or small_file(path) != data]
            assert not lost, f"{lost[0]} was not written by a build and is lost"
        found = _contents(out) | {_MANIFEST: load_checkpoint_manifest(out).to_json().encode()}  # 1.0 may be 1 there
        assert found == self.written, "what is there is not what a build writes"


def _contents(directory: Path) -> Files:
    """The regular files, and those that links lead to; nothing of what is huge or no file."""
    found: Files = {}
    for path in directory.rglob("*"):
        if path.is_file() and path.stat().st_size < 2**26:
            with contextlib.suppress(OSError):  # a link into /proc
                found[str(path.relative_to(directory))] = path.read_bytes()
    return found


def _change(out: Path, foreign: list[Path], rng: random.Random) -> str:
    manifest, way = out / _MANIFEST, rng.randrange(8)
    text = small_file(manifest).decode(errors="replace")
    if way < 3 and text:
        try:
            changed, told = mutate_json(json.loads(text), rng, _WORDS)
        except (ValueError, RecursionError):
            changed, told = {}, "empty"
        manifest.write_text(dumps(changed), errors="surrogateescape")
        return f"manifest: {told}"
    if way == 3 and text:
        data, told = damaged_text(text, rng)
        manifest.write_bytes(data)
        return f"manifest: {told}"
    if way == 4:
        name = rng.choice(["thesis.txt", "l4export/thesis.txt", "model-00001-of-00002.safetensors", "config.json.bak"])
        if (out / name).parent.is_dir() and not os.path.lexists(out / name):
            foreign.append(out / name)
            foreign[-1].write_text("years of work")
        return f"with {name}"
    if way == 5:
        folder = out / "l4export"
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
            folder.symlink_to("../victim")
        return "l4export is a link to a directory elsewhere"
    files = [path for path in sorted(out.rglob("*")) if not path.is_dir()]
    return replace_file(rng.choice(files), rng) if files else "nothing is left"
