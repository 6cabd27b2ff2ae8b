"""Experts that are stored as linear layers: each by itself, stacked, or some so and some so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from whole_array import WholeArray

from l4export.checkpoint import open_checkpoint
from l4export.checkpoint.experts import JoinedExperts
from l4export.checkpoint.stored_weight import StoredWeight
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.model.tensors import tensors
from l4export.parity.whole_model import check_parity
from l4export.quantization.policy import standard_policy
from workshop import Workshop, copy_checkpoint

Weights = dict[str, np.ndarray]


def one_by_one(name: str, linear: str, values: np.ndarray) -> Weights:
    """A matrix [out, in] of each expert."""
    return {f"{name}.{expert}.{linear}.weight": matrix for expert, matrix in enumerate(values)}


def stacked(name: str, linear: str, values: np.ndarray) -> Weights:
    return {f"{name}.{linear}.weight": values}


def both(name: str, linear: str, values: np.ndarray) -> Weights:
    """The gates stacked, the rest one by one: told apart weight by weight."""
    return (stacked if linear == "gate_proj" else one_by_one)(name, linear, values)


def gates_and_ups(name: str, linear: str, values: np.ndarray) -> Weights:
    """A matrix of each expert, its rows the gates and then the ups."""
    return one_by_one(name, linear, values)


Form = Callable[[str, str, np.ndarray], Weights]


def rewritten(source: Path, target: Path, form: Form) -> Path:
    """A checkpoint whose experts are linear layers in another form."""
    copy_checkpoint(source, target)
    found: Weights = {}
    for name, values in load_file(target / "model.safetensors").items():
        if not (match := re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", name)):
            found[name] = values
            continue
        two = match[2] == "gate_up_proj" and form is not gates_and_ups
        parts, linears = (np.split(values, 2, axis=2), ("gate_proj", "up_proj")) if two else ([values], (match[2],))
        for linear, part in zip(linears, parts, strict=True):
            found |= form(match[1], linear, np.ascontiguousarray(part.transpose(0, 2, 1)))
    save_file(found, target / "model.safetensors")
    return target


@pytest.mark.parametrize("form", [one_by_one, stacked, both, gates_and_ups])
@pytest.mark.parametrize("variant", ["scout", "maverick"])
def test_the_same_weights(workshop: Workshop, tmp_path: Path, variant: str, form: Form) -> None:
    source = workshop.checkpoint(variant)
    plain, other = open_checkpoint(source), open_checkpoint(rewritten(source, tmp_path / "c", form))
    assert plain.is_plain() and not other.is_plain()
    for name, shape in tensors(plain.config).items():
        np.testing.assert_array_equal(other.tensor(name, shape).read(), plain.tensor(name, shape).read())


@pytest.mark.parametrize("quant", ["none", "int4"])
def test_the_same_engine(workshop: Workshop, tmp_path: Path, quant: str) -> None:
    """Data files byte for byte, whatever the form; and the reference of the other form agrees."""
    options = {"max_context": 64, "policy": standard_policy(quant), "jobs": 1}
    source = workshop.checkpoint("scout")
    other = rewritten(source, tmp_path / "c", one_by_one)
    for checkpoint, engine in ((source, "a"), (other, "b")):
        build(checkpoint, tmp_path / engine, BuildOptions(**options))
    data = "decoder-00001-of-00001.data"
    assert (tmp_path / "a" / data).read_bytes() == (tmp_path / "b" / data).read_bytes()
    if quant == "none":
        assert check_parity(tmp_path / "b", other, 20, 4).passed


def test_one_matrix_is_missing(workshop: Workshop, tmp_path: Path) -> None:
    path = rewritten(workshop.checkpoint("scout"), tmp_path / "c", one_by_one)
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.0.feed_forward.experts.2.up_proj.weight"]
    save_file(weights, path / "model.safetensors")
    with pytest.raises(InputError, match=r"gate_up_proj' is missing: experts are stored one by one .* not all of them"):
        build(path, tmp_path / "e", BuildOptions(max_context=64))


def test_two_forms_of_the_same_weight(workshop: Workshop, tmp_path: Path) -> None:
    """The tensor of transformers is taken, and what is then left over is named."""
    path = rewritten(workshop.checkpoint("scout"), tmp_path / "c", one_by_one)
    both_of_them = load_file(path / "model.safetensors") | load_file(workshop.checkpoint("scout") / "model.safetensors")
    save_file(both_of_them, path / "model.safetensors")
    with pytest.raises(InputError, match=r"experts\.\d\.\w+_proj\.weight' is no part of the model"):
        build(path, tmp_path / "e", BuildOptions(max_context=64))


@given(st.data())
def test_any_region_as_numpy_has_it(data: st.DataObject) -> None:
    values = np.arange(7 * 5 * 6, dtype=np.float32).reshape(7, 5, 6)
    index = tuple(
        data.draw(st.slices(size) | st.integers(-size, size - 1))
        for size in values.shape[: data.draw(st.integers(0, 3))]
    )
    got = WholeArray(values).read(index)
    np.testing.assert_array_equal(got, values[index])
    assert got.flags.c_contiguous and got.shape == values[index].shape


@given(st.data())
def test_any_region_of_experts(data: st.DataObject) -> None:
    """Two linear layers of three experts, of two dtypes: side by side, each transposed."""
    random = np.random.default_rng(0)
    matrices = random.standard_normal((2, 3, 5, 4)).astype(np.float32)
    linears: list[list[StoredWeight]] = [
        [WholeArray(matrix.astype(dtype)) for matrix in experts]
        for experts, dtype in zip(matrices, (np.float32, ml_dtypes.bfloat16), strict=True)
    ]
    weight = JoinedExperts("w", (3, 4, 10), linears)
    rounded = np.stack([matrices[0], matrices[1].astype(ml_dtypes.bfloat16).astype(np.float32)])
    whole = np.concatenate(list(rounded), axis=1).transpose(0, 2, 1)
    assert weight.dtype == np.float32
    index = tuple(data.draw(st.slices(size)) for size in weight.shape)
    np.testing.assert_array_equal(weight.read(index), whole[index])
    expert, low, high = data.draw(st.integers(0, 2)), 1, data.draw(st.integers(2, 4))
    pieces = list(weight.rows((expert, slice(low, high), slice(3, 9)), 1))
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in pieces]), whole[expert, low:high, 3:9])
