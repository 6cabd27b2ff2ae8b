"""What of a model's token ids reaches onnxruntime-genai, which refuses ids outside the vocabulary."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx_ir as ir
import pytest

from l4export.targets import UnfinishedEngine
from l4export.targets.genai_config import write_genai_config
from workshop import Workshop


@pytest.mark.parametrize(
    ("stops", "pad", "begin", "expected"),
    [
        ((2, 7), 3, 1, ([2, 7], 3, 1)),
        ((999, 7, -1), None, None, ([7], 7, 0)),
        ((7,), -1, 256, ([7], 7, 0)),
        ((), 3, 1, None),
        ((256, 1000), 3, 1, None),
    ],
)
def test_ids_of_the_vocabulary(
    workshop: Workshop, tmp_path: Path, stops: tuple[int, ...], pad: int | None, begin: int | None, expected: object
) -> None:
    config = dataclasses.replace(workshop.engine("scout", "static").config)
    for name, value in (("eos_token_ids", stops), ("pad_token_id", pad), ("bos_token_id", begin)):
        object.__setattr__(config, name, value)  # whatever a config may hold
    said: list[str] = []
    model = ir.Model(ir.Graph((), (), nodes=()), ir_version=10)
    engine = UnfinishedEngine(
        tmp_path, "decoder.onnx", model, config, "static", 256, 256, (), None, (), (), on_notice=said.append
    )
    names = write_genai_config(engine)
    if expected is None:
        assert names == [] and list(tmp_path.iterdir()) == []
        assert said == [
            "no genai_config.json: the model names no end-of-sequence token of its vocabulary, and onnxruntime-genai "
            "would stop at token 0 instead; set eos_token_id in config.json if it has one"
        ]
        return
    written = json.loads((tmp_path / names[0]).read_text())["model"]
    assert (written["eos_token_id"], written["pad_token_id"], written["bos_token_id"]) == expected and said == []
