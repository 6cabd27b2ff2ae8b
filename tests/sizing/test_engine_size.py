"""Planned data files have the same sizes as those that `build` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from l4export.checkpoint import read_config
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.passes.lay_out_kv_cache import LAYOUTS
from l4export.quantization.policy import standard_policy
from l4export.sizing import engine_size
from l4export.sizing.combinations import WEIGHTS
from l4export.sizing.engine_size import EngineSizes
from workshop import Workshop, copy_checkpoint, edit_config


def options(quant: str, dtype: str, layout: str, context: int) -> BuildOptions:
    return BuildOptions(dtype=dtype, kv_layout=layout, max_context=context, policy=standard_policy(quant), jobs=1)


@pytest.mark.parametrize("variant", ["scout", "maverick", "guard", "mobile"])
@pytest.mark.parametrize(("quant", "dtype"), WEIGHTS)
def test_to_the_byte(workshop: Workshop, tmp_path: Path, variant: str, quant: str, dtype: str) -> None:
    build(workshop.checkpoint(variant), tmp_path / "e", options(quant, dtype, "static", 250))
    written = sum(file.stat().st_size for file in (tmp_path / "e").glob("*.data"))
    size = EngineSizes(read_config(workshop.checkpoint(variant))).size(quant, dtype, "static", dtype, 250)
    assert size.data == written


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["scout", "maverick"])
def test_at_every_context(workshop: Workshop, tmp_path: Path, variant: str, layout: str) -> None:
    """Chunks have 16 tokens. Rotation tables grow with the context up to 131072 positions. Beyond, there are none."""
    checkpoint = copy_checkpoint(workshop.checkpoint(variant), tmp_path / "c")
    edit_config(checkpoint, max_position_embeddings=300_000)
    sizes = EngineSizes(read_config(checkpoint))
    for context in (1, 15, 16, 17, 100, 5000, 131072, 131073, 300_000):
        planned = plan_build(checkpoint, options("int8", "fp32", layout, context))
        assert sizes.size("int8", "fp32", layout, "fp32", context).data == sum(planned.data_files.values()), context


def test_the_whole_model_is_laid_out_once(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another context or KV dtype costs a specimen of two layers (of two kinds of attention), or nothing."""
    layers: list[int] = []

    def counted(config: ModelConfig, *arguments: Any) -> Any:
        layers.append(config.num_hidden_layers)
        return compile_model(config, *arguments)

    compile_model = engine_size._compile
    monkeypatch.setattr(engine_size, "_compile", counted)
    sizes = EngineSizes(read_config(workshop.checkpoint("scout")))
    first = sizes.size("int4", "fp32", "static", "fp32", 200)
    assert sizes.size("int4", "fp32", "static", "int8", 200) == first
    assert layers == [2, 4]
    assert sizes.size("int4", "fp32", "static", "fp32", 2000).data > first.data
    assert layers == [2, 4, 2]


def test_what_fp8_makes_of_its_weights(workshop: Workshop) -> None:
    """Float copies of the head and of one layer's matrices: attention, four experts, the shared one."""
    c = read_config(workshop.checkpoint("scout"))
    attention = 2 * c.hidden_size * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
    experts = 3 * c.hidden_size * c.intermediate_size * (c.num_local_experts + 1)
    size = EngineSizes(c).size("fp8", "fp32", "static", "fp32", 100)
    assert size.dequantized == 4 * (c.vocab_size * c.hidden_size + attention + experts)
    assert EngineSizes(c).size("int8", "fp32", "static", "fp32", 100).dequantized == 0


def test_the_largest_weight(workshop: Workshop) -> None:
    """The embedding of the float engine: 256 x 64 elements."""
    sizes = EngineSizes(read_config(workshop.checkpoint("guard")))
    assert sizes.size("none", "fp16", "static", "fp16", 16).largest == 2 * 256 * 64


def test_widths_that_no_block_divides(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    edit_config(checkpoint, intermediate_size=40)
    with pytest.raises(InputError, match="no block size divides its width"):
        EngineSizes(read_config(checkpoint)).size("int4", "fp32", "static", "fp32", 100)
