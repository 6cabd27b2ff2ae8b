"""Quantised checkpoints are read as the numbers that their codes stand for, whatever the format."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file

from l4export.checkpoint import open_checkpoint
from l4export.checkpoint.packed_ints import unpack
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.model.tensors import tensors
from l4export.parity.whole_model import check_parity
from l4export.quantization.policy import standard_policy
from l4export.reference.transformers_model import HFReference
from quantised_checkpoints import Linears, pack, quantised, quantised_by_fbgemm
from workshop import Workshop, random_ids

LAYER = "model.layers.0.feed_forward"
FBGEMM = "fbgemm"
Paths = tuple[Path, Path]
FORMS = {
    "fp8 rows": Linears(is_float=True),
    "fp8 tensors": Linears(is_float=True, strategy="tensor", scale_dtype=np.float32),
    "fp8 blocks": Linears(is_float=True, strategy="block"),
    "int8 rows": Linears(),
    "int8 with zero points": Linears(symmetric=False),
    "int8 tensors with zero points": Linears(symmetric=False, strategy="tensor"),
    "int4 in int8": Linears(bits=4, strategy="group", symmetric=False),
    "int4 groups": Linears(packed=True, bits=4, strategy="group"),
    "int4 groups with zero points": Linears(packed=True, bits=4, strategy="group", symmetric=False),
    "int4 groups reordered": Linears(packed=True, bits=4, strategy="group", symmetric=False, reordered=True),
    "int4 rows with zero points": Linears(packed=True, bits=4, symmetric=False, scale_dtype=np.float16),
    "int8 groups packed": Linears(packed=True, strategy="group", symmetric=False),
    "int8 rows packed": Linears(packed=True),
}


@pytest.fixture(scope="module")
def made(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Paths]:
    """A quantised checkpoint and the float one that it stands for, made once for each form."""
    root = tmp_path_factory.mktemp("quantised")

    @functools.cache
    def make(variant: str, name: str) -> Paths:
        source, target = workshop.checkpoint(variant), root / f"{variant} {name}"
        return quantised_by_fbgemm(source, target) if name == FBGEMM else quantised(source, target, FORMS[name])

    return make


Made = Callable[[str, str], Paths]
ALL = [*(("scout", name) for name in (*FORMS, FBGEMM)),
       *(("maverick", name) for name in ("fp8 rows", "int4 groups reordered", FBGEMM))]  # fmt: skip


@pytest.mark.parametrize(("variant", "name"), ALL)
def test_the_numbers_that_codes_stand_for(made: Made, variant: str, name: str) -> None:
    """Bit for bit those of the definition, in float32; and every tensor of the file belongs to a weight."""
    path, plain = made(variant, name)
    checkpoint, expected = open_checkpoint(path), load_file(plain / "model.safetensors")
    names: set[str] = set()
    for weight_name, shape in tensors(checkpoint.config).items():
        weight = checkpoint.tensor(weight_name, shape)
        np.testing.assert_array_equal(weight.read(), expected[weight_name])
        names.update(part.name for part in weight.parts)
    checkpoint.check_all_known(names)
    assert not checkpoint.is_plain() and names == set(checkpoint.tensors)


@given(st.data())
def test_what_is_packed_comes_back(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([4, 8]))
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40)))
    codes = data.draw(arrays(np.int8, shape, elements=st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)))
    np.testing.assert_array_equal(unpack(pack(codes, bits), bits)[:, : shape[1]], codes)


@pytest.mark.parametrize("name", ["int4 groups reordered", "int4 rows with zero points", "fp8 blocks", FBGEMM])
@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_region(made: Made, name: str, data: st.DataObject) -> None:
    """Regions begin and end within words, groups and blocks."""
    path, plain = made("scout", name)
    checkpoint, expected = open_checkpoint(path), load_file(plain / "model.safetensors")
    experts = data.draw(st.sampled_from(["gate_up_proj", "down_proj"]))
    for weight_name in (f"{LAYER}.experts.{experts}", f"{LAYER}.shared_expert.up_proj.weight"):
        whole = expected[weight_name]
        index = tuple(data.draw(st.slices(size)) for size in whole.shape)
        np.testing.assert_array_equal(checkpoint.tensor(weight_name, whole.shape).read(index), whole[index])


@pytest.mark.parametrize(
    ("variant", "name"), [("scout", "int8 with zero points"), ("maverick", "int4 groups reordered")]
)
def test_the_same_engine(made: Made, tmp_path: Path, variant: str, name: str) -> None:
    """Of codes that are not kept: data files byte for byte those of the float checkpoint; logits those of transformers
    on it, past chunks of 16."""
    path, plain = made(variant, name)
    engines = {checkpoint: tmp_path / checkpoint.name for checkpoint in (path, plain)}
    for checkpoint, engine in engines.items():
        build(checkpoint, engine, BuildOptions(max_context=64, jobs=1))
    assert data_of(engines[path]) == data_of(engines[plain])
    report = check_parity(engines[path], plain, 20, 20)
    assert report.passed and report.chunk_boundaries > 0
    for compared in (report.prefill, report.decode):  # float32 in another order of summation gives 1e-6
        assert compared and compared.max_relative_difference < 1e-5


def test_the_reference_reads_the_same(made: Made) -> None:
    """transformers on the quantised checkpoint itself, as `parity` and `quality` run it."""
    path, plain = made("maverick", "int4 groups reordered")
    ids = random_ids((1, 40))
    np.testing.assert_array_equal(HFReference(path).logits(ids), HFReference(plain).logits(ids))


@pytest.mark.parametrize("name", ["fp8 rows", "int8 rows"])
def test_rounded_again(made: Made, tmp_path: Path, name: str) -> None:
    path, plain = made("scout", name)
    for checkpoint in (path, plain):
        options = BuildOptions(max_context=64, policy=standard_policy("int4"), jobs=1)
        build(checkpoint, tmp_path / checkpoint.name, options)
    assert data_of(tmp_path / path.name) == data_of(tmp_path / plain.name)


def data_of(engine: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(engine.glob("*.data"))]
