"""The TensorRT runtime, all of it but the GPU.

Its binding plans are held against TensorRT's parser and against PyTorch, executed call by call on the very graph that
TensorRT compiles.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4export import runtimes
from l4export.benchmark.measure import bench
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest
from l4export.errors import EnvironmentLacks, InputError
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.parity.whole_model import check_parity
from l4export.quantization.policy import standard_policy
from l4export.reference.transformers_model import HFReference
from l4export.runtimes.cache.binding_plan import Tensor
from l4export.runtimes.cache.device import Binding
from l4export.runtimes.cache.device_cache import DeviceCache
from l4export.runtimes.onnxruntime.device import OnnxRuntimeDevice
from l4export.runtimes.session import Session
from l4export.runtimes.tensorrt.plan import departures, tensorrt_plan
from workshop import Workshop, assert_close, random_ids

pytest.importorskip("tensorrt_rtx")
import tensorrt_stand_ins as stand_ins

LAYOUTS = ("static", "chunked")
CONTEXT = 96

Lowered = Callable[..., Path]


@pytest.fixture(scope="module")
def lowered(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """Engine directories whose graph is not compiled, which takes longer than all the rest: a placeholder is there."""
    made: dict[tuple[str, ...], Path] = {}

    def make(variant: str, layout: str, quant: str = "none", dtype: str = "fp32", cut: bool = False) -> Path:
        key = variant, layout, quant, dtype, str(cut)
        if key not in made:
            path = tmp_path_factory.mktemp("lowered") / "engine"
            options = BuildOptions(
                target="tensorrt-rtx",
                dtype=dtype,
                kv_layout=layout,
                max_context=CONTEXT,
                policy=standard_policy(quant),
                compute_capabilities=("8.9",),
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "l4export.targets.tensorrt.finish.compile_engine", lambda *a: a[2].write_bytes(b"not compiled")
                )
                if cut:
                    patch.setattr("l4export.targets.tensorrt.parts.layer_ranges", lambda *_: ((0, 1), (1, 3), (3, 4)))
                build(workshop.checkpoint(variant), path, options)
            made[key] = path
        return made[key]

    return make


class Recording(OnnxRuntimeDevice):
    """A device on this machine's CPU that remembers what was bound: (profile, tensor, shape, address) of each run."""

    def __init__(self, engine: Path) -> None:
        parts = load_manifest(engine).decoder.parts
        super().__init__([stand_ins.without_attribute(engine / part.graph) for part in parts], "cpu")
        self.runs: list[tuple[int, dict[str, tuple[Tensor, tuple[int, ...], int]]]] = []

    def binding(self, part: int, profile: int, fixed: bool = False) -> Binding:
        device, inner = self, super().binding(part, profile)
        bound: dict[str, tuple[Tensor, tuple[int, ...], int]] = {}

        class Watched:
            def bind(self, tensor: Tensor, shape: tuple[int, ...], address: int) -> None:
                bound[tensor.name] = tensor, shape, address
                inner.bind(tensor, shape, address)

            def run(self) -> None:
                device.runs.append((profile, dict(bound)))
                inner.run()

        return Watched()


def session_on(device: OnnxRuntimeDevice, engine: Path, **options: Any) -> Session:
    def new_cache(manifest: Any, batch: int, capacity: int) -> DeviceCache:
        return DeviceCache(device, tensorrt_plan(manifest), manifest, batch, capacity)

    return Session(new_cache, load_manifest(engine), 1, **options)


# Plans ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "layout", "quant", "dtype"),
    [
        ("scout", "chunked", "int4", "fp16"),
        ("scout", "static", "fp8", "fp32"),
        ("mobile", "static", "none", "bf16"),
        ("maverick", "chunked", "none", "fp16"),
    ],
)
def test_a_plan_says_what_tensorrt_says(lowered: Lowered, variant: str, layout: str, quant: str, dtype: str) -> None:
    engine = lowered(variant, layout, quant, dtype)
    plan = tensorrt_plan(load_manifest(engine))
    told = stand_ins.parsed(engine / "decoder.onnx", plan.profiles)
    assert len(plan.profiles) == (1 if quant == "none" else 2)
    assert departures(plan, 0, told) == []
    assert [name for name, tensor in told.items() if tensor.on_host] == ["logits_to_keep"]
    changes: list[dict[str, Any]] = [
        {"dtype": "int8"},
        {"shape": (7,) * 4},
        {"is_output": True},
        {"on_host": True},
        {"ranges": told["past_key_values.0.key"].ranges[1:]},
        {"shares": "input_ids"},
    ]
    for change in changes:
        other = dataclasses.replace(told["past_key_values.0.key"], **change)
        (found,) = departures(plan, 0, {**told, "past_key_values.0.key": other})
        assert found.startswith(f"past_key_values.0.key: {next(iter(change))} ")
    copied = dataclasses.replace(told["present.1.value"], shares=None)
    assert departures(plan, 0, {**told, "present.1.value": copied}) == [
        "present.1.value: shares None, planned past_key_values.1.value"
    ]
    assert departures(plan, 0, {name: tensor for name, tensor in told.items() if name != "logits"}) == [
        "logits is missing"
    ]


def test_a_call_has_the_first_profile_that_takes_it(lowered: Lowered) -> None:
    plan = tensorrt_plan(load_manifest(lowered("scout", "chunked", "int4", "fp16")))
    assert plan.profiles == ((1, 1, 2), (2, 16, 16))
    assert [plan.profile(tokens) for tokens in (1, 2, 3, 16)] == [0, 0, 1, 1]
    with pytest.raises(InputError, match="no optimisation profile for 17 tokens"):
        plan.profile(17)


def test_a_plan_counts_the_bytes_of_the_caches(lowered: Lowered) -> None:
    engine = lowered("scout", "chunked", "int4", "fp16")
    session = session_on(Recording(engine), engine)
    # three chunked layers of 16 slots and a full one of 96; keys and values, 2 heads of 16 channels, 2 bytes
    assert session.kv_bytes == (3 * 16 + CONTEXT) * 2 * 2 * 16 * 2


def test_profiles_are_those_of_the_manifest(lowered: Lowered) -> None:
    """Nobody computes them a second time."""
    manifest = load_manifest(lowered("scout", "chunked", "int4", "fp16"))
    decoder = dataclasses.replace(manifest.decoder, profiles=({"tokens": (1, 3, 16)},))
    assert tensorrt_plan(dataclasses.replace(manifest, graphs={"decoder": decoder})).profiles == ((1, 3, 16),)


def test_caches_that_grow_cannot_be_bound(workshop: Workshop) -> None:
    with pytest.raises(InputError, match="caches of layout concat do not stay in place"):
        tensorrt_plan(load_manifest(workshop.engine_path("scout", "concat")))


# Plans, executed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["scout", "maverick-top2", "guard"])
def test_the_planned_calls_compute_what_pytorch_computes(
    workshop: Workshop, lowered: Lowered, variant: str, layout: str
) -> None:
    """50 tokens at once, 5 in the middle of a chunk, 30 one by one: five boundaries."""
    engine, ids = lowered(variant, layout), random_ids(85)
    device = Recording(engine)
    session = session_on(device, engine)
    got = [session.append(ids[:50])[0], session.append(ids[50:55])[0]]
    got += [session.append(ids[at : at + 1])[0] for at in range(55, 85)]
    assert_close(np.concatenate(got), workshop.reference(variant).logits(ids[None])[0])
    session.reset()
    assert_close(session.append(ids[:50], last_only=True)[0], got[0][-1:])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantised_engines_use_two_profiles_on_the_same_buffers(
    workshop: Workshop, lowered: Lowered, layout: str
) -> None:
    engine, ids = lowered("scout", layout, "int4", "fp16"), random_ids(80)
    device = Recording(engine)
    session = session_on(device, engine)
    got = [session.append(ids[:50])[0], *(session.append(ids[at : at + 1])[0] for at in range(50, 80))]
    reference = HFReference(workshop.checkpoint("scout"))
    reference.replace(dequantized_weights(engine))
    assert_close(np.concatenate(got), reference.logits(ids[None])[0], 2e-2)  # float16: 11 bits, and sums of them
    # In layout chunked a prompt is cut at multiples of 16; its last two tokens fit into decoding's profile.
    prefill = {"static": [(1, 50)], "chunked": [(1, 16), (1, 16), (1, 16), (0, 2)]}[layout]
    assert [(profile, bound["input_ids"][1][1]) for profile, bound in device.runs] == [*prefill, *[(0, 1)] * 30]
    plan = tensorrt_plan(load_manifest(engine))
    told = stand_ins.parsed(engine / "decoder.onnx", plan.profiles)
    for profile, bound in device.runs:
        assert set(bound) == {tensor.name for tensor in plan.parts[0]}
        for name, (tensor, shape, address) in bound.items():
            if tensor.cache:
                assert address == device.runs[0][1][f"past_key_values.{tensor.cache}"][2]
            if not tensor.is_output and tensor.shape:
                least, most = told[name].ranges[profile]
                assert all(low <= dim <= high for low, dim, high in zip(least, shape, most, strict=True))
    addresses = [address for name, (_, _, address) in device.runs[-1][1].items() if not name.startswith("present.")]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sessions_do_what_sessions_do(workshop: Workshop, lowered: Lowered, tmp_path: Path, layout: str) -> None:
    """Refusals, failures, going back, forks: as on a CPU, with keys and values on the device."""
    engine, ids = lowered("scout", layout), random_ids(90)
    device = Recording(engine)
    session, expected = session_on(device, engine), workshop.reference("scout").logits(ids[None])[0]
    session.append(ids[:40])
    for bad, words in (([256], "outside the vocabulary"), (random_ids(60), "capacity of 96"), ([], "no token ids")):
        with pytest.raises(InputError, match=words):
            session.append(bad)
    with pytest.MonkeyPatch.context() as patch:
        cache, run, calls = session._cache, session._cache.run, []

        def fails_later(call: Any) -> Any:
            calls.append(call)
            logits = run(call)
            if len(calls) == (2 if layout == "chunked" else 1):  # the second has written over the chunk
                raise RuntimeError("device lost")
            return logits

        patch.setattr(cache, "run", fails_later)
        with pytest.raises(InputError, match="device lost"):
            session.append(random_ids(20, seed=8))
    assert session.lengths.tolist() == [40]
    assert_close(session.append(ids[40:50])[0], expected[40:50])
    session.rewind(2)
    fork = session.fork()
    session.append(random_ids(20, seed=9))
    assert_close(fork.append(ids[48:60])[0], expected[48:60])
    with pytest.raises(InputError, match="no token ids"):
        fork.append([])


# The driver and the runtime, stood in for ----------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[stand_ins.Driver, list[stand_ins.Engine]]]:
    """A GPU and TensorRT's runtime, for the engines of one directory."""

    def install(directory: Path) -> tuple[stand_ins.Driver, list[stand_ins.Engine]]:
        driver, manifest = stand_ins.Driver(), load_manifest(directory)
        profiles, graphs = tensorrt_plan(manifest).profiles, [directory / part.graph for part in manifest.decoder.parts]
        engines = [stand_ins.Engine(graph, stand_ins.parsed(graph, profiles), driver) for graph in graphs]
        monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_ins.runtime_module(engines))
        return driver, engines

    return install


def test_an_engine_is_loaded_run_and_freed(workshop: Workshop, lowered: Lowered, gpu: Any) -> None:
    directory, ids = lowered("scout", "chunked"), random_ids(80)
    driver, (engine,) = gpu(directory)
    loaded = runtimes.load(directory)
    assert loaded.provider == "tensorrt_rtx 0.0 on Stand-in" and loaded.threads is None
    session = loaded.session()
    got = [session.append(ids[:50])[0], *(session.append(ids[at : at + 1])[0] for at in range(50, 80))]
    assert_close(np.concatenate(got), workshop.reference("scout").logits(ids[None])[0])
    assert len(engine.contexts) == 1 and len(driver.memory) == 8 + 5  # caches; ids, mask, two starts, logits
    assert not np.isnan(session.tokens(0)[0]).any()
    del session
    gc.collect()
    assert not driver.memory
    prompt = ids[:30].tolist()
    assert list(loaded.generate(prompt, 10, stop_token_ids=())) == workshop.greedy("scout", prompt, 10)
    with pytest.raises(InputError, match="a session of 2 rows: a TensorRT engine has one"):
        loaded.session(batch=2)
    driver.limit = 1000
    with pytest.raises(InputError, match="no memory for 1 x 96 tokens"):
        loaded.session()


def test_parts_are_run_one_after_the_other(workshop: Workshop, lowered: Lowered, gpu: Any) -> None:
    """Hidden states are handed on in the GPU's memory; ids are sent once; each part has its own caches."""
    directory, ids = lowered("scout", "chunked", "int4", "fp16", cut=True), random_ids(80)
    driver, engines = gpu(directory)
    plan = tensorrt_plan(load_manifest(directory))
    assert [[t.name for t in part if t.is_handed_on] for part in plan.parts] == [
        ["hidden_states.1"],
        ["hidden_states.1", "hidden_states.3"],
        ["hidden_states.3"],
    ]
    session = runtimes.load(directory).session()
    got = [session.append(ids[:50])[0], *(session.append(ids[at : at + 1])[0] for at in range(50, 80))]
    reference = HFReference(workshop.checkpoint("scout"))
    reference.replace(dequantized_weights(directory))
    assert_close(np.concatenate(got), reference.logits(ids[None])[0], 2e-2)  # float16, as above
    assert [len(engine.contexts) for engine in engines] == [2, 2, 2]  # decoding and prompts
    assert len(driver.memory) == 8 + 5 + 2  # caches; ids, mask, two starts, logits; what is handed on
    del session
    gc.collect()
    assert not driver.memory


def test_parity_and_bench_name_the_gpu(workshop: Workshop, lowered: Lowered, gpu: Any) -> None:
    directory = lowered("scout", "static")
    gpu(directory)
    report = check_parity(directory, workshop.checkpoint("scout"), prefill=40, decode=20)
    assert report.passed and report.provider == "tensorrt_rtx 0.0 on Stand-in"
    figures = bench(directory, prefill=16, decode=4, repeats=1)
    assert figures.provider == "tensorrt_rtx 0.0 on Stand-in"
    assert (figures.threads, figures.read_bandwidth, figures.decode_bandwidth_share) == (None, None, None)


def test_an_engine_that_is_not_the_manifests_is_refused(lowered: Lowered, gpu: Any) -> None:
    directory = lowered("scout", "static")
    _, (engine,) = gpu(directory)
    engine.told = {**engine.told, "logits": dataclasses.replace(engine.told["logits"], dtype="float16")}
    with pytest.raises(InputError, match="logits: dtype float16, planned float32; build the engine again"):
        runtimes.load(directory)


def test_an_engine_for_another_gpu_is_refused(lowered: Lowered, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = lowered("scout", "static")
    gpu(directory)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", stand_ins.runtime_module([]))
    with pytest.raises(
        EnvironmentLacks, match=r"compute capability 8.9\) does not take it \(the plan is for another GPU"
    ):
        runtimes.load(directory)


def test_what_is_missing_is_named_the_driver_first(lowered: Lowered, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = lowered("scout", "static")
    driver, _ = gpu(directory)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EnvironmentLacks, match="needs the Python package tensorrt_rtx: pip install"):
        runtimes.load(directory)
    monkeypatch.setattr(driver, "cuInit", lambda flags: 100, raising=False)
    with pytest.raises(EnvironmentLacks, match=r"finds no GPU .CUDA error 100.: build with --target onnx"):
        runtimes.load(directory)

    def no_driver(name: str) -> object:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(EnvironmentLacks, match="there is no NVIDIA driver"):
        runtimes.load(directory)
