"""What weights take, weight by weight."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest
from l4export.inspection.graph_file import load_graph
from l4export.inspection.weight_bytes import bits_per_weight, weight_bytes
from l4export.model.tensors import parameter_count, tensors
from l4export.model.weight_names import KINDS, kind_of, layer_of
from l4export.quantization.policy import Policy, Rule, standard_policy
from workshop import VARIANTS, Workshop


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_float_engine_has_32_bits_a_weight(workshop: Workshop, variant: str) -> None:
    path = workshop.engine_path(variant, "static")
    config = load_manifest(path).model
    assert bits_per_weight(load_graph(path), config) == 32
    shapes = tensors(config)
    assert sum(map(math.prod, shapes.values())) == parameter_count(config).total
    assert {kind_of(name) for name in shapes} <= set(KINDS)


@pytest.mark.parametrize("target", ["ort-cpu", "onnx"])
def test_codes_and_scales_of_packed_projections_are_shared_out(workshop: Workshop, tmp_path: Path, target: str) -> None:
    policy = Policy((Rule(("*_proj.weight", "*.experts.*"), "int4", 32), Rule(("lm_head.weight",), "int8", 64)))
    build(workshop.checkpoint("scout"), tmp_path / "e", BuildOptions(policy=policy, target=target, max_context=64))
    config = load_manifest(tmp_path / "e").model
    found, shapes = weight_bytes(load_graph(tmp_path / "e"), config), tensors(config)
    bits = {name: 8 * found[name] / math.prod(shape) for name, shape in shapes.items()}
    for name, value in bits.items():
        if name.endswith("_proj.weight") or "experts.gate_up" in name or "experts.down" in name:
            assert value == 4 + 32 / 32, name
        else:
            assert value == (8 + 32 / 64 if name == "lm_head.weight" else 32), name


def test_names_tell_kind_and_layer() -> None:
    assert kind_of("model.layers.3.feed_forward.shared_expert.down_proj.weight") == "shared expert"
    assert kind_of("model.layers.3.feed_forward.down_proj.weight") == "dense MLP"
    assert kind_of("model.layers.30.input_layernorm.weight") == "norm" == kind_of("model.norm.weight")
    assert layer_of("model.layers.30.self_attn.q_proj.weight") == 30 and layer_of("lm_head.weight") is None
    with pytest.raises(ValueError, match="vision"):
        kind_of("vision.weight")


def test_a_tied_head_is_counted_once(workshop: Workshop, tmp_path: Path) -> None:
    build(workshop.checkpoint("mobile"), tmp_path / "e", BuildOptions(policy=standard_policy("int8")))
    config = load_manifest(tmp_path / "e").model
    found = weight_bytes(load_graph(tmp_path / "e"), config)
    assert config.tie_word_embeddings and "lm_head.weight" not in found
    assert 8 * found["model.embed_tokens.weight"] / (config.vocab_size * config.hidden_size) == 8 + 32 / 64
