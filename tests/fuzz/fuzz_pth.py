"""Class `pth`: folders of Meta's own layout, whose files of torch.save are zip archives; built and run."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fuzz_case import Case, Subject
from fuzz_checkpoint import use_checkpoint
from fuzz_files import Files, read_files, replace_file, write_files
from fuzz_json import damaged_text, dumps, mutate_json
from fuzz_valid import small_checkpoint

__all__ = ["PthSubject"]

_VARIANTS = {"scout": "fp8", "maverick": "", "guard": ""}
_OPTIONS: list[dict[str, Any]] = [{}, {"layers": (0, 1)}, {"kv_layout": "chunked"}, {"quant": "int8"}]
_NAMES = [
    *(
        "torch FloatStorage",
        "torch HalfStorage",
        "torch LongStorage",
        "torch.storage UntypedStorage",
        "torch float8_e4m3fn",
    ),
    *("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "_io BytesIO"),
    *("os system", "builtins eval", "builtins getattr", "torch load", "subprocess Popen", "torch.nn Module"),
]


_DAMAGED = (zipfile.BadZipFile, LookupError, StopIteration, ValueError, NotImplementedError)
"""What Python says of an archive that an earlier change has damaged; the last one of an unknown compression."""


class _Touch:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


class PthSubject(Subject):
    """Folders of two shards, one of them with scales of FP8; whatever is built must run."""

    name = "pth"

    def prepare(self) -> None:
        """One folder of each variant."""
        from meta_folders import write_meta_folder

        for name, scales in _VARIANTS.items():
            small_checkpoint(self.valid / f"hf-{name}", name, layers=3)
            write_meta_folder(self.valid / f"hf-{name}", self.valid / name, 2, scales=scales)

    def begin(self) -> None:
        """Build one with quantised weights, which loads the kernels, and run it."""
        self.files = {name: read_files(self.valid / name) for name in _VARIANTS}
        use_checkpoint(self.valid / "scout", self.valid / f"engine-{os.getpid()}", _OPTIONS[-1])

    def make(self, rng: random.Random, place: Path) -> Case:
        """One to three changes of its files, and options to build it with."""
        variant, options = rng.choice(list(_VARIANTS)), rng.choice(_OPTIONS)
        files, what = dict(self.files[variant]), [variant, str(options)]
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            what.append(_change(files, rng))
        path = place / "checkpoint"
        write_files(path, files)
        if rng.random() < 0.1:
            what.append(replace_file(path / rng.choice(sorted(files)), rng))
        return Case(lambda: use_checkpoint(path, place / "engine", options), what, output="engine")


def _change(files: Files, rng: random.Random) -> str:
    """Change one of the files; says how."""
    archives = [name for name in files if name.endswith((".pth", ".pt"))]
    name, way = rng.choice(archives), rng.randrange(10)
    if way == 0:
        text = files["params.json"].decode(errors="replace")
        try:
            changed, told = mutate_json(json.loads(text), rng)
            files["params.json"] = dumps(changed).encode(errors="replace")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            files["params.json"], told = damaged_text(text, rng)
        return f"params.json: {told}"
    if way == 1:
        other = rng.choice(["consolidated.00.pth", "consolidated.02.pth", "consolidated.pth", "int4_scales_0.pt", name])
        files[other] = files.pop(name) if rng.random() < 0.5 else files[rng.choice(archives)]
        return f"{name} as {other}"
    try:
        if way == 2:
            files[name], told = _bytes(files[name], rng)
        elif way <= 4:
            files[name], told = _entries(files[name], rng)
        else:
            files[name], told = _pickle(files[name], rng)
    except _DAMAGED:
        told = "as it was"
    return f"{name}: {told}"


def _bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes of the table at the end, of the pickle at the beginning, or anywhere."""
    changed = bytearray(data)
    low, high = rng.choice([(0, min(len(data), 2000)), (max(0, len(data) - 12000), len(data)), (0, len(data))])
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(low, high)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    if rng.random() < 0.2:
        return bytes(changed[: rng.randrange(len(changed))]), f"cut, and bytes changed in {low}:{high}"
    return bytes(changed), f"bytes changed in {low}:{high}"


def _unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _packed(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def _entries(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The archive with entries that are not as they should be."""
    entries = _unpacked(data)
    name, other = rng.choice(sorted(entries)), rng.choice(sorted(entries))
    way = rng.randrange(8)
    if way == 0:
        return _packed(entries, zipfile.ZIP_DEFLATED), "compressed"
    if way == 1:
        return _packed({**entries, name: bytes(10**7)}, zipfile.ZIP_DEFLATED), f"{name} is a bomb"
    if way == 2:
        del entries[name]
        return _packed(entries), f"without {name}"
    if way == 3:
        entries[name] = rng.choice([b"", entries[name][:-1], entries[name] + b"\0" * rng.choice([1, 4, 4096])])
        return _packed(entries), f"{name} of another size"
    if way == 4:
        entries[name], entries[other] = entries[other], entries[name]
        return _packed(entries), f"{name} and {other} exchanged"
    if way == 5:
        more = rng.choice(
            ["x", "y/data.pkl", f"{name}/x", "é", "a\nb", "../x", "byteorder", name.replace("data", "DATA")]
        )
        return _packed({**entries, more: b"big"}), f"with {more!r}"
    if way == 6:
        values = np.frombuffer(bytearray(entries[name][: len(entries[name]) // 4 * 4]), np.float32).copy()
        values[:: rng.choice([1, 7])] = rng.choice([np.nan, np.inf, -3e38, 0.0])
        return _packed({**entries, name: values.tobytes()}), f"{name} of other numbers"
    folder = name.partition("/")[0]
    return _packed({key.replace(folder, "other", 1): value for key, value in entries.items()}), "another folder"


def _pickle(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The archive with another pickle."""
    entries = _unpacked(data)
    name = next(name for name in entries if name.endswith("/data.pkl"))
    program = bytearray(entries[name])
    way = rng.randrange(7)
    if way == 0:
        program = bytearray(pickle.dumps({"a": _Touch()}, rng.randrange(6)))
        told = "runs a program"
    elif way == 1:
        old, new = rng.choice(_NAMES).encode(), rng.choice(_NAMES).encode()
        old, new = old.replace(b" ", b"\n"), new.replace(b" ", b"\n")
        program = bytearray(bytes(program).replace(old, new))
        told = f"{old!r} for {new!r}"
    elif way == 2:
        place = rng.randrange(len(program))
        call = b"cos\nsystem\nX\x0e\0\0\0touch executed\x85R"
        program[place:place] = call
        told = f"a call at {place}"
    elif way == 3:  # numbers: BININT1 and BININT2, those of shapes, strides, offsets and storages
        places = [at for at, byte in enumerate(program[:-4]) if byte in b"KM"]
        for _ in range(rng.choice([1, 2])):
            at = rng.choice(places)
            program[at : at + 2] = rng.choice(
                [b"K\0", b"K\1", b"K\xff", b"K\x20", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\x7f" * 8]
            )
        told = "other numbers"
    elif way == 4:
        place, length = rng.randrange(len(program)), rng.choice([1, 2, 5, 50])
        del program[place : place + length]
        told = f"without {place}:{place + length}"
    elif way == 5:
        place, length = rng.randrange(len(program)), rng.choice([10, 100, 500])
        program[place:place] = program[place : place + length] * rng.choice([1, 3, 200])
        told = f"{place}:{place + length} repeated"
    else:
        for _ in range(rng.choice([1, 1, 3])):
            program[rng.randrange(len(program))] = rng.choice([*b"().Rbcu}]tq\x81\x85\x94\x93Q0N", rng.randrange(256)])
        told = "instructions changed"
    return _packed({**entries, name: bytes(program)}), f"pickle: {told}"
