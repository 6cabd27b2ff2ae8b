"""Quantised weights whose codes are written in the order of a device: region by region, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from l4export.calibration.weight_codes import CalibrationPlan
from l4export.compiler.engine_build import _is_calibrated
from l4export.engine.weight_layout import pack
from l4export.quantization.packed_codes import PackedCodes, packable
from l4export.quantization.schemes import Scheme
from l4export.quantization.weights import CodedWeight, GivenWeight, QuantizedWeight
from l4export.weights.evaluation import Output
from l4export.weights.recipes import Constant, Recipe, Transpose, whole
from tiny_graphs import source


def weight(n: int = 32, k: int = 64, seed: int = 0) -> Recipe:
    return source(np.random.default_rng(seed).standard_normal((3, n, k)).astype(np.float32))


def codes_of(quantized: CodedWeight) -> Output:
    assert isinstance(quantized.codes, Output)
    return quantized.codes


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_codes_are_packed_and_the_rest_is_as_it_was(kind: str, symmetric: bool) -> None:
    quantized = QuantizedWeight(weight(), Scheme(kind, 64, symmetric))
    packed = PackedCodes(codes_of(quantized))
    assert [(out.dims, out.dtype) for out in packed.outputs] == [(out.dims, out.dtype) for out in quantized.outputs]
    (codes, *others), (plain, *same) = (each.evaluate(whole(each.lead)) for each in (packed, quantized))
    np.testing.assert_array_equal(codes, pack(plain, quantized.scheme.bits))
    for ours, theirs in zip(others, same, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rows = slice(packed.row_multiple, 3 * packed.row_multiple)
    np.testing.assert_array_equal(packed.evaluate((slice(1, 3), rows))[0], codes[1:3, rows])


def test_given_codes_are_packed() -> None:
    scheme = Scheme("int4", 64)
    stored = [np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8), np.ones((3, 32, 1), np.float32)]
    given = GivenWeight(weight(), scheme, [Constant(ir.tensor(part)) for part in stored])
    np.testing.assert_array_equal(PackedCodes(codes_of(given)).outputs[0].numpy(), pack(stored[0], 4))


def test_calibrated_codes_are_found_within(tmp_path: Path) -> None:
    scheme, name = Scheme("int4", 64), "model.layers.0.feed_forward.experts.gate_up_proj"
    plan = CalibrationPlan(None, tmp_path)  # type: ignore[arg-type]
    transposed = Transpose(source(np.zeros((3, 64, 32), np.float32)), (0, 2, 1))
    calibrated = GivenWeight(transposed, scheme, plan.add(name, (3, 64, 32), scheme))
    assert all(map(_is_calibrated, PackedCodes(codes_of(calibrated)).outputs))
    assert not _is_calibrated(PackedCodes(codes_of(QuantizedWeight(weight(), scheme))).outputs[0])


@pytest.mark.parametrize(
    "quantized",
    [
        QuantizedWeight(weight(n=24), Scheme("int4", 64)),
        QuantizedWeight(weight(k=96), Scheme("int4", 32)),
        QuantizedWeight(weight(), Scheme("fp8", 0)),
        QuantizedWeight(weight(), Scheme("int8", 64, positive=True)),
    ],
)
def test_what_has_no_such_order_is_left(quantized: QuantizedWeight) -> None:
    assert not packable(quantized.codes) and not packable(quantized.scales)
    with pytest.raises(ValueError, match="have no order of their own on a device"):
        PackedCodes(codes_of(quantized))
