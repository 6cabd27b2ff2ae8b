"""The passes of the vision tower. That features stay the same: tests/model/test_vision_tower.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from pass_checks import VISION
from tiny_vision import WIDTH, vision_raw, whole_raw

from l4export import passes
from l4export.checkpoint.hf_vision import vision_from_hf
from l4export.graph.contents import layer_values
from l4export.model.vision_tower import build_vision_tower
from tiny_graphs import source


def tower() -> ir.Model:
    config = vision_from_hf(whole_raw(vision_raw()), "config.json", 16)
    return build_vision_tower(
        config, WIDTH, lambda _, shape: source(np.ones(shape, np.float32)), ir.DataType.FLOAT, ir.DataType.FLOAT
    )


def found(model: ir.Model) -> list[str]:
    return [f"{node.domain}.{node.op_type}" for node in model.graph]


@pytest.mark.parametrize("make", VISION.values(), ids=VISION)
def test_what_every_pass_keeps(make: Callable[[], ir.passes.InPlacePass]) -> None:
    model = tower()
    before = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    layers = {held: value.name for held, value in layer_values(model.graph).items()}
    assert make()(model).modified and not make()(model).modified
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == before
    assert {held: value.name for held, value in layer_values(model.graph).items()} == layers and len(layers) == 5
    names = [node.name for node in model.graph]
    assert len(names) == len(set(names)) and found(model).count("l4.TileAttention") == 0


def test_fused_attention_reads_its_tables_where_they_are() -> None:
    model = tower()
    passes.FuseTileAttention()(model)
    nodes = found(model)
    assert nodes.count("com.microsoft.RotaryEmbedding") == 4 and nodes.count("com.microsoft.MultiHeadAttention") == 2
    assert "l4.TileAngles" not in nodes and ".RotaryEmbedding" not in nodes
    rotary = next(node for node in model.graph if node.op_type == "RotaryEmbedding")
    assert [value and value.name for value in rotary.inputs[2:]] == ["vision_rotary.cos", "vision_rotary.sin"]


def test_a_rotation_over_halves_is_not_fused() -> None:
    model = tower()
    rotary = next(node for node in model.graph if node.op_type == "RotaryEmbedding")
    rotary.attributes["interleaved"] = ir.AttrInt64("interleaved", 0)
    with pytest.raises(ir.passes.PreconditionError, match="rotated over adjacent pairs"):
        passes.FuseTileAttention()(model)


@pytest.mark.parametrize("make", VISION.values(), ids=VISION)
def test_they_run_before_the_dialect_is_inlined(make: Callable[[], ir.passes.InPlacePass]) -> None:
    model = tower()
    passes.InlineDialect()(model)
    with pytest.raises(ir.passes.PreconditionError, match="inlined already"):
        make()(model)


def test_tensorrts_attribute_needs_standard_attention() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="run LowerTileAttention first"):
        passes.AllowDecomposedAttention()(tower())
