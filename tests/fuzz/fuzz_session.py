"""Class `session`: files of saved sessions, loaded and gone on with."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from fuzz_case import Case, Subject
from fuzz_files import mutate_safetensors, pack, replace_file, spoil_numbers, unpack
from fuzz_json import dumps, mutate_json
from fuzz_valid import VOCABULARY, small_checkpoint

__all__ = ["SessionSubject", "forged_session"]

_ENGINES: dict[str, dict[str, Any]] = {
    "static": {},
    "chunked": {"kv_layout": "chunked"},
    "concat-int8": {"kv_layout": "concat", "kv_dtype": "int8"},
}
_ROWS = [[11, 12, 13] * 7, [5, 6]]


class SessionSubject(Subject):
    """Saved sessions of two rows, one past the end of a chunk."""

    name = "session"

    def prepare(self) -> None:
        """An engine of each layout with a session of its own."""
        import l4export

        small_checkpoint(self.valid / "checkpoint", "scout")
        for name, options in _ENGINES.items():
            l4export.build(
                self.valid / "checkpoint", self.valid / name, l4export.BuildOptions(max_context=64, jobs=1, **options)
            )
            session = l4export.load(self.valid / name, threads=1).session(batch=2, capacity=40)
            session.append(_ROWS)
            session.save(self.valid / f"{name}.session")

    def begin(self) -> None:
        """Open the engines, load what they have saved."""
        import l4export

        self.engines = {name: l4export.load(self.valid / name, threads=1) for name in _ENGINES}
        self.saved = {name: (self.valid / f"{name}.session").read_bytes() for name in _ENGINES}
        self.next = {}
        for name, engine in self.engines.items():
            self.next[name] = engine.load_session(self.valid / f"{name}.session").append([[1], [2]])
            assert np.isfinite(self.next[name]).all()

    def make(self, rng: random.Random, place: Path) -> Case:
        """A changed file, often with a digest that is right again; sometimes another engine's."""
        name = rng.choice(sorted(_ENGINES))
        data, path = self.saved[name], place / "saved"
        engine, what, same = name, [name], False
        way = rng.randrange(12)
        if way < 5:
            data, told = forged_session(data, rng)
        elif way < 9:
            data, told = mutate_safetensors(data, rng)
        elif way == 9:
            engine, told = rng.choice(sorted(_ENGINES)), "loaded with another engine"
            same = engine == name
        else:
            told = ""
        path.write_bytes(data)
        if way > 9:
            told = replace_file(path, rng)
        return Case(lambda: self._use(engine, path, same), [*what, told])

    def _use(self, name: str, path: Path, same: bool) -> None:
        session = self.engines[name].load_session(path)
        rows = len(session.lengths)
        assert (session.lengths >= 0).all() and session.positions.max() <= 64, "a state that no session can be in"
        logits = session.append([[1 + row % 200] for row in range(rows)])
        assert logits.shape == (rows, 1, VOCABULARY), f"logits of shape {logits.shape}"
        session.fork().append([[1]] * rows)
        assert not same or np.array_equal(logits, self.next[name]), "other logits than before it was saved"


def forged_session(file: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Another state, other metadata or other numbers, under a digest that fits (or, seldom, does not)."""
    header, data = unpack(file)
    metadata = header["__metadata__"]
    told = "the same"
    way = rng.randrange(4)
    if way <= 1:
        state = json.loads(metadata["state"])
        for _ in range(rng.choice([1, 1, 2])):
            if isinstance(state, dict) and state:
                state, told = mutate_json(state, rng, [0, 1, 15, 16, 17, 40, 41, 63, 64, 65, 2**48])
        metadata["state"] = dumps(state)
    elif way == 2:
        header["__metadata__"], told = mutate_json(metadata, rng, ["l4export-session-3"])
    else:
        data, told = spoil_numbers(header, data, rng)
    if isinstance(header["__metadata__"], dict) and rng.random() < 0.9:
        state = header["__metadata__"].get("state")
        digest = hashlib.sha256(state.encode(errors="surrogatepass") if isinstance(state, str) else b"")
        digest.update(data)
        header["__metadata__"]["sha256"] = digest.hexdigest()
    return pack(header, data), f"forged: {told}"
