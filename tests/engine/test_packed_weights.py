"""Manifests of engines with packed weights: what is written is read, and what contradicts itself is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from l4export.engine import manifest_reader
from l4export.engine.manifest import PACKED_WEIGHTS, PORTABLE, UNPACKED
from l4export.errors import InputError
from manifests import SCHEMA, read

Planned = Callable[[str], dict[str, Any]]
SHAPE = [4, 128, 32]


@pytest.fixture
def packed(planned: Planned) -> dict[str, Any]:
    """A manifest of an ort-cuda engine, with a packed weight of 4 experts, 128 rows and 64 codes each."""
    raw = planned("cuda")
    record = {"bytes": 4096 + 4 * 128 * 32, "sha256": "0" * 64}
    raw["files"] |= {"portable.onnx": record, "decoder-00001-of-00001.data": record}
    runtime = {"name": "onnxruntime", "provider": "cpu"}
    raw["graphs"][PORTABLE] = {**raw["graphs"]["decoder"], "file": "portable.onnx", "runtime": runtime}
    where = {"file": "decoder-00001-of-00001.data", "offset": 4096}
    weight = {"name": "fc1.codes", "layout": "mixed_gemm_sm80", "bits": 4, **where, "shape": SHAPE}
    return {**raw, "requires": [PACKED_WEIGHTS], PACKED_WEIGHTS: [weight]}


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        read(json.dumps(raw))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_is_read_as_it_is_written(packed: dict[str, Any]) -> None:
    manifest = read(json.dumps(packed))
    assert json.loads(manifest.to_json()) == packed and SCHEMA.is_valid(packed)
    assert manifest.portable.file == "portable.onnx" and manifest.packed_weights[0].shape == tuple(SHAPE)


def test_engines_without_packed_weights_have_no_such_field(planned: Planned) -> None:
    raw = planned("static")
    manifest = read(json.dumps(raw))
    assert PACKED_WEIGHTS not in raw and manifest.packed_weights == () and manifest.portable is manifest.decoder


def test_a_runtime_that_does_not_know_them_refuses(packed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_reader, "FEATURES", frozenset())
    assert "requires 'packed_weights', which this l4export does not know; upgrade l4export" in refusal(packed)


@pytest.mark.parametrize("field", ["name", "layout", "bits", "file", "offset", "shape"])
def test_every_field_must_be_there_and_of_its_type(packed: dict[str, Any], field: str) -> None:
    (weight,) = packed[PACKED_WEIGHTS]
    for wrong in (None, {}, -1, [64], *(["../x"] if field != "name" else [""])):
        other = {**packed, PACKED_WEIGHTS: [{**weight, field: wrong}]}
        assert f"packed_weights[0].{field}" in refusal(other) and not SCHEMA.is_valid(other)
    del weight[field]
    assert f"packed_weights[0].{field} is missing" in refusal(packed) and not SCHEMA.is_valid(packed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [4, 120, 32]}, "packed_weights[0].shape is 4 x 120 x 32, which mixed_gemm_sm80 of 4 bits has not"),
        ({"bits": 8, "shape": [4, 128, 96]}, "packed_weights[0].shape"),
        ({"bits": 3}, "packed_weights[0].bits is 3"),
        ({"offset": 4097}, "packed_weights[0].offset is 4097, and the weight goes beyond the end of decoder-00001"),
        ({"file": "other.data"}, "packed_weights[0].file is 'other.data', which is not among the files"),
        ({"layout": "mixed_gemm_sm90"}, "packed_weights[0].layout is 'mixed_gemm_sm90', which is not one of"),
    ],
)
def test_a_weight_that_cannot_be_unpacked(packed: dict[str, Any], change: dict[str, Any], words: str) -> None:
    packed[PACKED_WEIGHTS][0] |= change
    assert words in refusal(packed)


def test_what_must_go_with_it(packed: dict[str, Any]) -> None:
    portable = packed["graphs"][PORTABLE]
    others = {name: graph for name, graph in packed["graphs"].items() if name != PORTABLE}
    assert "graphs.portable is missing, and weights are packed" in refusal({**packed, "graphs": others})
    assert "packed_weights is missing" in refusal({k: v for k, v in packed.items() if k != PACKED_WEIGHTS})
    assert "packed_weights is empty, and the engine requires it" in refusal({**packed, PACKED_WEIGHTS: []})
    assert "has 2 weights called 'fc1.codes'" in refusal({**packed, PACKED_WEIGHTS: 2 * packed[PACKED_WEIGHTS]})
    files = {**packed["files"], UNPACKED: {"bytes": 1, "sha256": "0" * 64}}
    assert f"files.{UNPACKED} is there" in refusal({**packed, "files": files})
    for field, words in {"inputs": "are not those of graphs.decoder", "outputs": "are not those"}.items():
        graphs = {**packed["graphs"], PORTABLE: {**portable, field: portable[field][:-1]}}
        assert f"graphs.portable.{field} {words}" in refusal({**packed, "graphs": graphs})
    graphs = {**packed["graphs"], PORTABLE: {**portable, "runtime": {"name": "onnxruntime", "provider": "cuda"}}}
    assert "graphs.portable.runtime is onnxruntime cuda" in refusal({**packed, "graphs": graphs})
