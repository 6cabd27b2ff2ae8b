"""The operators of domain l4.cpu in ONNX Runtime: the kernels' bits, any number of threads; bad nodes are refused."""

from __future__ import annotations

import threading
from typing import Any

import cpu_kernel_library as library
import numpy as np
import pytest
from cpu_kernel_definition import Unit
from cpu_kernel_library import MoeTiles, Tiles, assert_same_bits, random_matrix
from cpu_kernel_models import (
    gated_attributes,
    linear_attributes,
    linear_model,
    mlp_model,
    moe_attributes,
    moe_model,
    session,
)
from onnx import helper

F32 = np.float32
EXPERTS, HIDDEN, WIDTH = 6, 256, 128


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    return Tiles(random_matrix(np.random.default_rng(0), 1000, 256, 4, 64, False), False)


@pytest.fixture(scope="module")
def moe_tiles() -> MoeTiles:
    rng = np.random.default_rng(1)
    units = [
        Unit(random_matrix(rng, 2 * WIDTH, HIDDEN, 4, 64, False), random_matrix(rng, HIDDEN, WIDTH, 4, 64, False))
        for _ in range(EXPERTS + 1)
    ]
    return MoeTiles(units[:-1], units[-1], False)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("activations", ["int8", "float"])
def test_linear_of_any_shape(tiles: Tiles, activations: str, threads: int) -> None:
    rng = np.random.default_rng(0)
    bias = rng.standard_normal(1000).astype(F32)
    attributes = linear_attributes(tiles, activations)
    plain, biased = (session(linear_model(tiles.array, attributes, b), threads) for b in (None, bias))
    for lead in [(), (1,), (3, 1), (2, 3), (40,), (2, 0), (300,)]:
        x = rng.standard_normal((*lead, 256)).astype(F32)
        y = library.linear("scalar", tiles, x.reshape(-1, 256), activations == "int8")
        assert_same_bits(plain.run(None, {"x": x})[0], y.reshape(*lead, 1000))
        assert_same_bits(biased.run(None, {"x": x})[0], (y + bias).reshape(*lead, 1000))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_moe(moe_tiles: MoeTiles, shared: bool, threads: int) -> None:
    rng = np.random.default_rng(0)
    attributes, arrays = moe_attributes(moe_tiles, EXPERTS, 2, "int8"), moe_tiles.arrays
    if not shared:
        attributes |= {name: attributes[name][:2] for name in ("bits", "block_size", "zero_points")}
    made = session(moe_model(arrays if shared else arrays[:2], attributes), threads)
    for lead in [(1,), (1, 5), (0, 5), (2, 35)]:
        x, logits = (rng.standard_normal((*lead, n)).astype(F32) for n in (HIDDEN, EXPERTS))
        only = MoeTiles.__new__(MoeTiles)
        only.arrays, only.layouts = (
            (moe_tiles.arrays, moe_tiles.layouts) if shared else (arrays[:2], moe_tiles.layouts[:2])
        )
        expected = library.moe("scalar", only, 2, x.reshape(-1, HIDDEN), logits.reshape(-1, EXPERTS), True)
        assert_same_bits(made.run(None, {"x": x, "logits": logits})[0], expected.reshape(x.shape))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("activations", ["int8", "float"])
def test_mlp_is_a_shared_expert_alone(moe_tiles: MoeTiles, activations: str, threads: int) -> None:
    """It equals the mixture whose experts all have weights 0."""
    rng = np.random.default_rng(0)
    alone = MoeTiles.__new__(MoeTiles)
    alone.arrays, alone.layouts = moe_tiles.arrays[2:], moe_tiles.layouts[2:]
    made = session(mlp_model(alone.arrays, gated_attributes(alone, activations)), threads)
    none = [np.zeros_like(array) for array in moe_tiles.arrays[:2]]
    with_zeros = session(moe_model([*none, *alone.arrays], moe_attributes(moe_tiles, EXPERTS, 1, activations)))
    for lead in [(1,), (2, 0), (2, 35)]:
        x = rng.standard_normal((*lead, HIDDEN)).astype(F32)
        logits = np.zeros((*lead, EXPERTS), F32)
        assert_same_bits(made.run(None, {"x": x})[0], with_zeros.run(None, {"x": x, "logits": logits})[0])


def test_two_callers_of_two_sessions(tiles: Tiles) -> None:
    rng = np.random.default_rng(0)
    sessions = [session(linear_model(tiles.array, linear_attributes(tiles, "int8")), 2) for _ in range(2)]
    inputs = [rng.standard_normal((count, 256)).astype(F32) for count in (1, 8, 40)]
    expected = [library.linear("scalar", tiles, x, True) for x in inputs]
    wrong: list[int] = []

    def call(number: int) -> None:
        for i in range(30):
            x, y = inputs[i % 3], expected[i % 3]
            if not np.array_equal(sessions[number % 2].run(None, {"x": x})[0], y):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


BAD_LINEAR: dict[str, tuple[str, Any, str]] = {
    "bits": ("bits", 5, "weights of 5 bits"),
    "block": ("block_size", 48, "block_size is 48"),
    "columns": ("K", 250, "250 columns are no whole blocks of 64"),
    "negative": ("K", -256, "K is -256"),
    "huge": ("N", 2**62, "N is 4611686018427387904"),
    "rows": ("N", 1025, "tiles has 139264 bytes, not the 33 tiles of 4352 bytes"),
    "other block": ("block_size", 32, "not the 32 tiles of 4608 bytes"),
    "zero points": ("zero_points", 1, "not the 32 tiles"),
    "zero_points of 2": ("zero_points", 2, "zero_points is 2"),
    "activations": ("activations", "bf16", 'activations is "bf16"'),
    "no bits": ("bits", None, "no integer attribute bits"),
    "no activations": ("activations", None, "no attribute activations"),
    "number as text": ("K", "256", "no integer attribute K"),
}


@pytest.mark.parametrize("case", BAD_LINEAR)
def test_bad_linear_nodes_are_refused_by_name(tiles: Tiles, case: str) -> None:
    attribute, value, message = BAD_LINEAR[case]
    attributes = linear_attributes(tiles, "int8") | {attribute: value}
    if value is None:
        del attributes[attribute]
    with pytest.raises(Exception, match=r'l4\.cpu Linear "the_Linear": ') as refused:
        session(linear_model(tiles.array, attributes))
    assert message in str(refused.value) and "\n" not in str(refused.value)


BAD_MOE: dict[str, tuple[str, Any, str]] = {
    "k": ("k", 7, "k is 7 of 6 experts"),
    "width": ("intermediate", 120, "intermediate is 120"),
    "experts": ("experts", 7, "gate_up has"),
    "few formats": ("bits", [4, 4], "no attribute bits of 4 integers"),
    "shared": ("bits", [4, 4, 8, 4], "shared_gate_up has"),
}


@pytest.mark.parametrize("case", BAD_MOE)
def test_bad_moe_nodes_are_refused_by_name(moe_tiles: MoeTiles, case: str) -> None:
    attribute, value, message = BAD_MOE[case]
    attributes = moe_attributes(moe_tiles, EXPERTS, 1, "int8") | {attribute: value}
    with pytest.raises(Exception, match=r'l4\.cpu MoE "the_MoE": ') as refused:
        session(moe_model(moe_tiles.arrays, attributes))
    assert message in str(refused.value)


def test_tiles_that_are_no_constant_are_refused(tiles: Tiles) -> None:
    made = linear_model(tiles.array, linear_attributes(tiles, "int8"))
    tensor = made.graph.initializer.pop()
    made.graph.input.append(helper.make_tensor_value_info("tiles", tensor.data_type, tensor.dims))
    with pytest.raises(Exception, match="tiles is no constant of the graph"):
        session(made)


def test_bad_inputs_stop_the_call(tiles: Tiles, moe_tiles: MoeTiles) -> None:
    plain = session(linear_model(tiles.array, linear_attributes(tiles, "int8")))
    with pytest.raises(Exception, match=r"Linear's x is not \[.., 256\]"):
        plain.run(None, {"x": np.zeros((2, 255), F32)})
    biased = session(linear_model(tiles.array, linear_attributes(tiles, "int8"), np.zeros(7, F32)))
    with pytest.raises(Exception, match=r"Linear's bias is not \[N\]"):
        biased.run(None, {"x": np.zeros((2, 256), F32)})
    experts = session(moe_model(moe_tiles.arrays, moe_attributes(moe_tiles, EXPERTS, 1, "int8")))
    with pytest.raises(Exception, match="different numbers of rows"):
        experts.run(None, {"x": np.zeros((2, HIDDEN), F32), "logits": np.zeros((3, EXPERTS), F32)})


def test_an_instruction_set_may_be_named(tiles: Tiles, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((40, 256)).astype(F32)
    monkeypatch.setenv("L4_CPU_ISA", isa)
    made = session(linear_model(tiles.array, linear_attributes(tiles, "int8")))
    assert_same_bits(made.run(None, {"x": x})[0], library.linear("scalar", tiles, x, True))


def test_an_unknown_instruction_set_is_refused(tiles: Tiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L4_CPU_ISA", "mmx")
    with pytest.raises(Exception, match=r'L4_CPU_ISA is "mmx"; this processor runs .*scalar'):
        session(linear_model(tiles.array, linear_attributes(tiles, "int8")))
