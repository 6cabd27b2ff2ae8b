"""Fields that are fine one by one and contradict each other are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from l4export import runtimes
from l4export.engine import manifest_reader
from l4export.engine.manifest import MANIFEST
from l4export.errors import InputError
from manifests import KINDS, planned_manifest, read
from workshop import VARIANTS, Workshop

Planned = Callable[[str], dict[str, Any]]


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        read(json.dumps(raw))
    message = str(error.value)
    assert len(message.splitlines()) == 1 and message.endswith("; build the engine again")
    return message.removeprefix("m/manifest.json: ").removesuffix("; build the engine again")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_build_writes_agrees_with_itself(workshop: Workshop, variant: str, kind: str) -> None:
    options = {name: value for name, value in KINDS[kind].items() if name != "parts"}
    raw = planned_manifest(workshop.checkpoint(variant), **options)
    assert json.loads(read(json.dumps(raw)).to_json()) == raw


CONTRADICTIONS = [
    # sequences
    ("static", "max_context", 4097, "max_context is 4097, and the model takes 4096 tokens"),
    ("chunked", "prefill/cut_at_multiples_of", 8, "layout chunked with attention_chunk_size 16 has 16"),
    ("chunked", "prefill/cut_at_multiples_of", None, "prefill.cut_at_multiples_of is null"),
    ("static", "prefill/cut_at_multiples_of", 16, "layout static with attention_chunk_size 16 has null"),
    ("static", "prefill/max_tokens_per_call", 0, "expected an integer from 1"),
    ("static", "prefill/max_tokens_per_call", 101, "is 101; a call can have 100"),
    ("chunked", "prefill/max_tokens_per_call", 17, "is 17; a call can have 16"),
    # caches
    ("static", "kv_cache/layers", [], "kv_cache.layers has 0 entries; the model has 4 layers"),
    ("static", "kv_cache/layout", "ring", "is 'ring', which is not one of concat, static, chunked"),
    ("chunked", "kv_cache/layers/0/kind", "full", "layers[0].kind is full; by model.chunked_layers it is chunked"),
    ("static", "kv_cache/layers/3/kind", "chunked", "layers[3].kind is chunked; by model.chunked_layers it is full"),
    ("chunked", "kv_cache/layers/0/capacity", 8, "layers[0].capacity is 8; in layout chunked it is 16"),
    ("chunked", "kv_cache/layers/0/capacity", None, "layers[0].capacity is null; in layout chunked it is 16"),
    ("chunked", "kv_cache/layers/3/capacity", 16, "layers[3].capacity is 16; in layout chunked it is 100"),
    ("concat", "kv_cache/layers/0/capacity", 100, "layers[0].capacity is 100; in layout concat it is null"),
    ("kv-int4", "kv_cache/storage/channels_per_element", 1, "kv_cache.storage is not that of precision.kv_cache int4"),
    ("static", "kv_cache/storage/dtype", "float16", "kv_cache.storage is not that of precision.kv_cache fp32"),
    ("static", "precision/kv_cache", "fp16", "kv_cache.storage is not that of precision.kv_cache fp16"),
    # precision
    ("static", "precision/activations", "fp16", "precision.activations is fp16; expected precision.compute (fp32)"),
    ("static", "precision/quant", "int4", "precision.quant is 'int4'; by options.weights it is 'none'"),
    ("onnx", "precision/quant", "none", "precision.quant is 'none'; by options.weights it is 'int4"),
    (
        "onnx",
        "options/weights/policy/rules/0/kind",
        None,
        "options.weights.policy does not have rules and accuracy_level",
    ),
    # files
    ("static", "files", {}, "graphs.decoder.file is 'decoder.onnx', which is not among the files"),
    ("static", "graphs/decoder/file", "other.onnx", "graphs.decoder.file is 'other.onnx', which is not among"),
    ("static", "graphs/decoder/file", "../decoder.onnx", "leads outside the engine"),
    ("tensorrt-parts", "graphs/decoder/parts/1/engine", "a.engine", "parts[1].engine is 'a.engine', which is not"),
    ("static", "files/decoder.onnx/sha256", "0" * 63, "sha256 is not 64 hexadecimal digits"),
    ("static", "files/decoder.onnx/sha256", "A" * 64, "sha256 is not 64 hexadecimal digits"),
    # inputs and outputs
    ("static", "graphs", {}, "graphs.decoder is missing"),
    ("static", "graphs/decoder/inputs/0/name", "ids", "inputs[0].name is 'ids', which a decoder of these layers does"),
    ("static", "graphs/decoder/inputs/1/name", "input_ids", "has 2 inputs and outputs called 'input_ids'"),
    ("static", "graphs/decoder/inputs/0/dtype", "int8", "inputs[0].dtype of input_ids is int8; expected int64"),
    ("static", "graphs/decoder/inputs/0/dtype", "int32", "is 'int32', which is not one of float32"),
    ("static", "graphs/decoder/inputs/0/shape", ["batch"], "[batch]; expected [batch, sequence]"),
    ("static", "graphs/decoder/inputs/0/shape", ["batch", 0], "inputs[0].shape[1] is 0"),
    ("static", "graphs/decoder/inputs/0/optional", True, "nothing can stand in for input_ids"),
    ("static", "graphs/decoder/inputs/2/shape", ["batch", 2, "capacity", 8], "expected [batch, 2, capacity, 16]"),
    ("static", "graphs/decoder/inputs/2/shape", ["batch", 4, "capacity", 16], "expected [batch, 2, capacity, 16]"),
    ("static", "graphs/decoder/inputs/2/shape", ["batch", 2, "past", 16], "expected [batch, 2, capacity, 16]"),
    (
        "static",
        "graphs/decoder/inputs/2/shape",
        ["batch", 2, 100, 16],
        "present.0.key is not that of past_key_values.0",
    ),
    ("static", "graphs/decoder/inputs/2/dtype", "float16", "past_key_values.0.key is float16; expected float32"),
    ("kv-int4", "graphs/decoder/inputs/2/dtype", "int8", "past_key_values.0.key is int8; expected uint8"),
    (
        "chunked",
        "graphs/decoder/inputs/2/shape",
        ["batch", 2, "capacity", 16],
        "expected [batch, 2, chunk_capacity, 16]",
    ),
    ("concat", "graphs/decoder/outputs/1/shape", ["batch", 2, "past", 16], "expected [batch, 2, present, 16]"),
    ("static", "graphs/decoder/outputs/0/shape", ["batch", "logits_sequence", 255], "logits_sequence, 256]"),
    ("static", "graphs/decoder/outputs/0/dtype", "float16", "logits is float16; expected float32"),
    ("static", "graphs/decoder/outputs", [], "graphs.decoder.outputs lack logits"),
    # profiles and parts
    ("tensorrt", "graphs/decoder/profiles", [], "graphs.decoder.profiles do not go with its parts"),
    ("tensorrt", "graphs/decoder/parts", [], "graphs.decoder.profiles do not go with its parts"),
    ("static", "graphs/decoder/runtime/name", "tensorrt", "lists no compiled engine, and its runtime is tensorrt"),
    (
        "tensorrt",
        "graphs/decoder/runtime/name",
        "onnxruntime",
        "lists compiled engines, and its runtime is onnxruntime",
    ),
    ("tensorrt", "graphs/decoder/profiles/0/tokens/opt", 200, "profiles[0].tokens has not min <= opt <= max"),
    ("tensorrt", "graphs/decoder/profiles/0/tokens/max", 99, "profiles take no call of 100 tokens"),
    ("tensorrt", "graphs/decoder/profiles/0/tokens/min", 0, "expected an integer from 1"),
    ("tensorrt-parts", "graphs/decoder/profiles/1/tokens/min", 4, "profiles take no call of 3 tokens"),
    ("tensorrt-parts", "graphs/decoder/parts/1/layers", [1, 2], "each of the layers 0 to 3 once, in order"),
    ("tensorrt-parts", "graphs/decoder/parts/1/layers", [1], "is not [first, behind the last]"),
    ("tensorrt-parts", "graphs/decoder/parts/0/inputs/5/optional", True, "a compiled engine needs"),
    ("tensorrt-parts", "graphs/decoder/parts/1/inputs/0/shape", ["batch", "sequence", 32], "sequence, 64]"),
    ("tensorrt-parts", "graphs/decoder/parts/1/inputs/0/dtype", "float32", "is float32; expected float16"),
    (
        "tensorrt-parts",
        "graphs/decoder/parts/1/inputs/0/name",
        "hidden_states.2",
        "is 'hidden_states.2', which a decoder",
    ),
]


@pytest.mark.parametrize(("kind", "place", "value", "words"), CONTRADICTIONS)
def test_a_contradiction_is_refused(planned: Planned, kind: str, place: str, value: Any, words: str) -> None:
    raw = planned(kind)
    *parents, last = [int(key) if key.isdigit() else key for key in place.split("/")]
    at: Any = raw
    for key in parents:
        at = at[key]
    at[last] = value
    assert words in refusal(raw)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda parts: parts.pop(), "each of the layers 0 to 3 once"),
        (lambda parts: parts.reverse(), "each of the layers 0 to 3 once"),
        (lambda parts: parts[0]["outputs"].pop(0), "parts[0].outputs lack hidden_states.1"),
        (lambda parts: parts[0]["inputs"].pop(0), "parts[0].inputs lack input_ids"),
        (lambda parts: parts[2]["outputs"].pop(0), "parts[2].outputs lack logits"),
        (lambda parts: parts[2]["inputs"].extend(parts[0]["inputs"][2:4]), "which a decoder of these layers does not"),
        (lambda parts: parts[1]["inputs"].append(parts[1]["inputs"][0]), "has 2 inputs and outputs called 'hidden_"),
        (lambda parts: parts[0]["outputs"][1].update(name="past_key_values.0.key"), "called 'past_key_values.0.key'"),
    ],
)
def test_parts_that_do_not_chain_are_refused(
    planned: Planned, edit: Callable[[list[dict[str, Any]]], Any], words: str
) -> None:
    raw = planned("tensorrt-parts")
    edit(raw["graphs"]["decoder"]["parts"])
    assert words in refusal(raw)


def test_a_graph_beside_the_decoder_is_an_entry(planned: Planned) -> None:
    """Of one that this version does not know, only what holds of every graph is checked."""
    raw = planned("static")
    tower = {"file": "vision.onnx", "runtime": {"name": "onnxruntime", "provider": "cuda"}, "profiles": [], "parts": []}
    pixels = {"name": "pixels", "dtype": "uint8", "shape": ["tiles", 3, 336, 336], "optional": False}
    features = {"name": "features", "dtype": "float32", "shape": ["tiles", 144, 64]}
    raw["graphs"]["vision_tower"] = {**tower, "inputs": [pixels], "outputs": [features], "needs": None}
    assert "graphs.vision_tower.file is 'vision.onnx', which is not among the files" in refusal(raw)
    raw["files"]["vision.onnx"] = raw["files"]["decoder.onnx"]
    manifest = read(json.dumps(raw))
    assert manifest.graphs["vision_tower"].inputs[0].shape == ("tiles", 3, 336, 336)
    assert json.loads(manifest.to_json()) == raw


def test_a_feature_that_is_not_known_is_refused_by_name(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = planned("static") | {"requires": ["known", "images"]}
    monkeypatch.setattr(manifest_reader, "FEATURES", frozenset({"known"}))
    with pytest.raises(InputError, match="requires 'images', which this l4export does not know; upgrade l4export"):
        read(json.dumps(raw))
    raw["requires"] = ["known"]
    assert read(json.dumps(raw)).requires == ("known",)


# Engines with such manifests -----------------------------------------------------------------------------------------


def opening(engine: Path, target: Path, edit: Callable[[dict[str, Any]], Any]) -> str:
    """The one line with which `load` refuses a copy of an engine whose manifest is edited."""
    shutil.copytree(engine, target)
    raw = json.loads((target / MANIFEST).read_text())
    edit(raw)
    (target / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(InputError) as error:
        runtimes.load(target)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda graph: graph["inputs"][0].pop("shape"), "graphs.decoder.inputs[0].shape is missing"),
        (lambda graph: graph["inputs"][0].pop("name"), "graphs.decoder.inputs[0].name is missing"),
        (lambda graph: graph["outputs"][1].update(name=7), "graphs.decoder.outputs[1].name is 7; expected"),
        (lambda graph: graph["outputs"][1].update(shape=7), "graphs.decoder.outputs[1].shape is 7; expected an array"),
    ],
)
def test_malformed_inputs_and_outputs(
    workshop: Workshop, tmp_path: Path, edit: Callable[[dict[str, Any]], Any], words: str
) -> None:
    """These were KeyErrors and TypeErrors once."""
    engine = workshop.engine_path("scout", "static")
    assert words in opening(engine, tmp_path / "e", lambda raw: edit(raw["graphs"]["decoder"]))


def test_chunks_of_another_size(workshop: Workshop, tmp_path: Path) -> None:
    """This was believed once, and sessions that were forked or loaded were wrong in silence."""
    engine = workshop.engine_path("scout", "chunked")
    words = opening(engine, tmp_path / "e", lambda raw: raw["prefill"].update(cut_at_multiples_of=8))
    assert "prefill.cut_at_multiples_of is 8; layout chunked with attention_chunk_size 16 has 16" in words


@pytest.mark.parametrize("name", ["logits_to_keep", "mask_start"])
def test_a_default_that_the_graph_does_not_have(workshop: Workshop, tmp_path: Path, name: str) -> None:
    def edit(raw: dict[str, Any]) -> None:
        (value,) = (value for value in raw["graphs"]["decoder"]["inputs"] if value["name"] == name)
        value["optional"] = False

    engine = workshop.engine_path("scout", "static")
    assert "decoder.onnx: has other inputs or outputs" in opening(engine, tmp_path / "e", edit)


@pytest.mark.parametrize("runtime", [("quantum", "cpu"), ("onnxruntime", "quantum"), ("tensorrt", "cpu")])
def test_a_runtime_that_is_not_known(workshop: Workshop, tmp_path: Path, runtime: tuple[str, str]) -> None:
    def edit(raw: dict[str, Any]) -> None:
        raw["graphs"]["decoder"]["runtime"] = dict(zip(("name", "provider"), runtime, strict=True))

    message = opening(workshop.engine_path("scout", "static"), tmp_path / "e", edit)
    if runtime[0] == "tensorrt":
        assert "lists no compiled engine" in message
    else:
        assert message.endswith(f"runs on {' '.join(runtime)}, which this l4export does not have; upgrade it")


def test_the_targets_name_does_not_decide_what_runs_it(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(workshop.engine_path("scout", "static"), tmp_path / "e")
    raw = json.loads((tmp_path / "e" / MANIFEST).read_text())
    (tmp_path / "e" / MANIFEST).write_text(json.dumps(raw | {"target": "a-target-of-tomorrow"}))
    assert list(runtimes.load(tmp_path / "e", threads=1).generate([1, 2], 2, stop_token_ids=()))
