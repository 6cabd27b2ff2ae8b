"""What `inspect` says of a checkpoint and of an engine, counted by hand; the files are told apart by what is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l4export.errors import InputError
from l4export.inspection.facts import CheckpointFacts, EngineFacts, inspect
from workshop import Workshop, copy_checkpoint


def test_a_checkpoint(workshop: Workshop) -> None:
    path = workshop.checkpoint("scout")
    facts = inspect(path)
    assert isinstance(facts, CheckpointFacts)
    weights = load_file(path / "model.safetensors")
    assert facts.tensors == len(weights)
    assert facts.model.parameters == sum(value.size for value in weights.values())
    assert facts.bytes == sum(value.nbytes for value in weights.values()) == facts.bytes_by_dtype["F32"]
    assert facts.files == {"model.safetensors": (path / "model.safetensors").stat().st_size}
    assert facts.model.heads == (4, 2, 16)
    assert (facts.model.layers, facts.model.chunked_layers, facts.model.attention_chunk_size) == (4, 3, 16)


def test_other_modalities_are_counted_apart(workshop: Workshop, tmp_path: Path) -> None:
    path = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(path / "model.safetensors")
    prefixed = {f"language_model.{name}": value for name, value in weights.items()}
    save_file({**prefixed, "vision_model.patch": np.ones((3, 5), np.float32)}, path / "model.safetensors")
    facts = inspect(path)
    assert isinstance(facts, CheckpointFacts)
    assert facts.tensors == len(weights)
    assert facts.bytes_of_other_modalities == 60


def test_an_engine(workshop: Workshop) -> None:
    path = workshop.engine_path("scout", "static")
    facts = inspect(path)
    assert isinstance(facts, EngineFacts)
    slot = 2 * 2 * 16 * 4  # keys and values, heads, width, float32
    assert (facts.kv_bytes_per_token, facts.kv_bytes) == (4 * slot, 4 * slot * 256)
    assert facts.bits_per_weight == 32
    assert facts.bytes == sum(file.stat().st_size for file in path.iterdir() if file.name != "manifest.json")
    assert facts.model == inspect(workshop.checkpoint("scout")).model
    assert facts.engines == {}


def test_the_document_is_flat(workshop: Workshop) -> None:
    """As the command prints it, with what is being described first."""
    document = json.loads(inspect(workshop.engine_path("scout", "static")).to_json())
    assert list(document)[:4] == ["kind", "path", "generator", "target"]
    assert document["kind"] == "engine" and document["heads"] == [4, 2, 16] and "model" not in document
    assert json.loads(inspect(workshop.checkpoint("scout")).to_json())["kind"] == "checkpoint"


def test_neither(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json is missing"):
        inspect(tmp_path)
