"""Executes cases of the conformance set with the Python runtime; see README.md."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from l4export import runtimes
from l4export.errors import InputError, L4Error
from l4export.runtimes.images.processor import ImageProcessor
from l4export.runtimes.images.prompt import ImageTokens, expand_images
from l4export.runtimes.sampling.settings import Sampling
from l4export.runtimes.session import Session

__all__ = ["run_cases"]

Result = dict[str, Any]


class Executor:
    """The calls of one case, on one engine.

    Attributes:
        logits: By the number of the call.
    """

    def __init__(self, engine: Path, pictures: Path, saved: Path, out: Path) -> None:
        self.engine = runtimes.load(engine, threads=1)
        self.pictures = load_file(pictures)
        self.saved, self.out = saved, out
        self.sessions: dict[str, Session] = {}
        self.images: dict[str, Any] = {}
        self.prompts: dict[str, list[int]] = {}
        self.logits: dict[str, np.ndarray] = {}

    def run(self, number: int, call: dict[str, Any]) -> Result:
        """What a call gives: its status, and what it tells."""
        arguments = dict(call)
        try:
            return {"status": 0, **getattr(self, arguments.pop("call"))(number, **arguments)}
        except L4Error as error:
            return {"status": error.exit_code, "message": str(error)}

    def session_create(
        self, number: int, rows: int, capacity: int | None = None, starts: list[int] | int = 0, **made: str
    ) -> Result:
        self.sessions[made["as"]] = self.engine.session(rows, capacity, starts)
        return {}

    def session_info(self, number: int, session: str) -> Result:
        found = self.sessions[session]
        return {
            "capacity": found.capacity,
            "kv_bytes": found.kv_bytes,
            "lengths": found.lengths.tolist(),
            "starts": found.starts.tolist(),
            "ids": [row.tolist() for row in found.token_ids],
        }

    def session_append(
        self, number: int, session: str, tokens: list[Any], last_only: bool, images: list[str | None] | None = None
    ) -> Result:
        found = self.sessions[session]
        rows, shown = self._rows(tokens), self._shown(images)
        one = found.batch == 1
        logits = found.append(rows[0] if one else rows, last_only, shown and (shown[0] if one else shown))
        self.logits[str(number)] = logits
        return {}

    def session_rewind(self, number: int, session: str, tokens: list[int]) -> Result:
        self.sessions[session].rewind(tokens)
        return {}

    def session_rewind_row(self, number: int, session: str, row: int, tokens: int) -> Result:
        found = self.sessions[session]
        if not 0 <= row < found.batch:
            raise InputError("no such row")
        found.rewind([tokens if each == row else 0 for each in range(found.batch)])
        return {}

    def session_reset(self, number: int, session: str) -> Result:
        self.sessions[session].reset()
        return {}

    def session_fork(self, number: int, session: str, rows: list[int], **made: str) -> Result:
        self.sessions[made["as"]] = self.sessions[session].fork(rows)
        return {}

    def session_copy_row(self, number: int, session: str, row: int, source: str, source_row: int) -> Result:
        self.sessions[session].copy_row(row, self.sessions[source], source_row)
        return {}

    def session_save(self, number: int, session: str, file: str) -> Result:
        self.sessions[session].save(self.out / file)
        return {}

    def session_load(self, number: int, file: str, **made: str) -> Result:
        self.sessions[made["as"]] = self.engine.load_session(self.saved / file)
        return {}

    def session_close(self, number: int, session: str) -> Result:
        self.sessions.pop(session).close()
        return {}

    def session_generate(
        self,
        number: int,
        session: str,
        prompts: list[Any],
        max_new_tokens: int,
        sampling: Any = None,
        images: list[str | None] | None = None,
        text: bool = False,
        stop_strings: list[str] | tuple[()] = (),
        **more: Any,
    ) -> Result:
        settings = [Sampling(**each) for each in sampling] if isinstance(sampling, list) else sampling
        if isinstance(settings, dict):
            settings = Sampling(**settings)
        generation = self.engine.generate_batch(
            self._rows(prompts),
            max_new_tokens,
            settings,
            images=self._shown(images),
            stop_strings=stop_strings,
            session=self.sessions[session],
            **more,
        )
        for _ in generation:
            pass
        texts = generation.texts if text else [None] * len(prompts)
        rows = [
            {
                "ids": row.tokens,
                "finish_reason": row.finish_reason,
                "logprobs": [[each.logprob, [list(pair) for pair in each.top]] for each in row.logprobs],
                **({"text": said} if text else {}),
            }
            for row, said in zip(generation.rows, texts, strict=True)
        ]
        return {"rows": rows}

    def tokenizer_encode(
        self, number: int, text: str, add_special_tokens: bool, special_tokens_as_text: bool
    ) -> Result:
        return {"ids": self._text.encode(text, add_special_tokens, special_tokens_as_text)}

    def tokenizer_decode(self, number: int, ids: list[int], skip_special: bool) -> Result:
        return {"text": self._text.decode(ids, skip_special)}

    def tokenizer_render_chat(self, number: int, chat: dict[str, Any]) -> Result:
        return {"text": self._text.render_chat(**_chat(chat))}

    def tokenizer_encode_chat(self, number: int, chat: dict[str, Any], special_tokens_as_text: bool) -> Result:
        return {"ids": self._text.encode_chat(**_chat(chat), special_tokens_as_text=special_tokens_as_text)}

    def images_create(self, number: int, pictures: list[str], max_tiles: int | None = None, **made: str) -> Result:
        processor = ImageProcessor.open(self.engine.directory)
        images = processor([self.pictures[name] for name in pictures], max_tiles)
        self.images[made["as"]] = images
        self.logits[str(number)] = images.tiles
        parts = zip(images.grids, images.tile_counts, images.token_counts, images.digests, strict=True)
        return {"images": [[*grid, tiles, tokens, digest] for grid, tiles, tokens, digest in parts]}

    def images_expand(self, number: int, images: str | None, ids: list[int], **made: str) -> Result:
        vision = self.engine.manifest.vision
        assert vision is not None
        tokens = ImageTokens.of(self._text.tokenizer, vision.rows_per_tile, vision.image_token_id)
        found = expand_images(ids, self.images[images].grids if images else (), tokens)
        self.prompts[made["as"]] = found
        return {"ids": found}

    def engine_forget_images(self, number: int) -> Result:
        self.engine.forget_images()
        return {}

    @property
    def _text(self) -> Any:
        assert self.engine.text is not None
        return self.engine.text

    def _rows(self, tokens: list[Any]) -> list[list[int]]:
        return [self.prompts[row] if isinstance(row, str) else row for row in tokens]

    def _shown(self, images: list[str | None] | None) -> list[Any] | None:
        return images and [None if name is None else self.images[name] for name in images]


def _chat(chat: dict[str, Any]) -> dict[str, Any]:
    """Messages as Python takes them: the placeholder of an image is a part without one."""
    if not isinstance(chat["messages"], list):
        raise InputError("messages are no list")
    return chat


def run_cases(directory: Path, out: Path, saved: Path) -> None:
    """Execute the cases in a directory; results lie in `out`, and sessions are loaded from `saved`."""
    out.mkdir(parents=True, exist_ok=True)
    for path in json.loads((directory / "cases.json").read_text()):
        case = json.loads((directory / path).read_text())
        executor = Executor(directory / "engine", directory / "pictures.safetensors", saved, out)
        results = [executor.run(number, call) for number, call in enumerate(case)]
        (out / path).write_text(json.dumps(results, ensure_ascii=False) + "\n")
        logits = {name: np.ascontiguousarray(array) for name, array in executor.logits.items()}
        save_file(logits, (out / path).with_suffix(".safetensors"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("directory", "out", "saved"):
        parser.add_argument(name, type=Path)
    run_cases(**vars(parser.parse_args()))
