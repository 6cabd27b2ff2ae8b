"""Checkpoints that compressed-tensors itself wrote: read to the bit, kept code by code, and run to float accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from library_checkpoints import compressed_by_library
from safetensors.numpy import load_file

from l4export.checkpoint import open_checkpoint
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.model.tensors import tensors
from l4export.parity.whole_model import check_parity
from workshop import Workshop

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
FORMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "W4A16": ({**INT4, "symmetric": True}, "pack-quantized", "kept"),
    "W4A16 with zero points": ({**INT4, "symmetric": False}, "pack-quantized", "kept"),
    "W8A16": ({**INT4, "num_bits": 8, "symmetric": True}, "pack-quantized", "dequantized"),
    "W8A8": ({"num_bits": 8, "type": "int", "strategy": "channel"}, "int-quantized", "dequantized"),
    "FP8": ({"num_bits": 8, "type": "float", "strategy": "channel"}, "float-quantized", "kept"),
    "FP8 tensors": ({"num_bits": 8, "type": "float", "strategy": "tensor"}, "float-quantized", "kept"),
    "FP8 blocks": (
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 16]},
        "float-quantized",
        "dequantized",
    ),
}


@pytest.mark.parametrize(
    ("variant", "name"), [*(("scout", name) for name in FORMS), ("maverick", "W4A16"), ("maverick", "FP8")]
)
def test_what_the_library_wrote(workshop: Workshop, tmp_path: Path, variant: str, name: str) -> None:
    """Weights are equal to the library's own; logits are transformers' on them, prefill and decode past chunks."""
    args, form, outcome = FORMS[name]
    path, plain = compressed_by_library(workshop.checkpoint(variant), tmp_path / "c", args, form)
    checkpoint, expected = open_checkpoint(path), load_file(plain / "model.safetensors")
    for weight, shape in tensors(checkpoint.config).items():
        np.testing.assert_array_equal(checkpoint.tensor(weight, shape).read(), expected[weight], err_msg=weight)
    planned = plan_build(path, BuildOptions(max_context=64))
    assert {codes.outcome for codes in planned.stored_codes} == {outcome}
    build(path, tmp_path / "e", BuildOptions(max_context=64, jobs=1))
    for weight, values in dequantized_weights(tmp_path / "e"):
        np.testing.assert_array_equal(values, expected[weight], err_msg=weight)
    report = check_parity(tmp_path / "e", plain, 20, 20)
    assert report.passed and report.chunk_boundaries > 0
    for compared in (report.prefill, report.decode):  # float32 in another order of summation gives 1e-6
        assert compared and compared.max_relative_difference < 1e-5
