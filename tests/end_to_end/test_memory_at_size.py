"""Proofs at size, minutes long: `make test-slow`. They need 30 GB of disk."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import onnx_ir as ir
import pytest

from l4export.checkpoint import read_config, read_vision_config
from l4export.engine.checkpoint_manifest import verify_checkpoint
from l4export.engine.manifest import verify_files
from l4export.engine.vision_interface import TILES_PER_CALL
from l4export.graph.contents import weights_of
from l4export.sizing.vision_need import vision_need
from l4export.targets.tensorrt.compile import compile_bytes
from measured_process import measure

pytestmark = pytest.mark.slow

GB = 10**9


def run(*arguments: object) -> int:
    """Run l4export in a process of its own; its peak resident memory in bytes."""
    return peak([sys.executable, "-m", "l4export", *map(str, arguments)])


def peak(command: list[str]) -> int:
    """Run a command; its peak resident memory in bytes."""
    with NamedTemporaryFile() as record:
        usage = measure(command, Path(record.name))
    assert usage.exit_code == 0, command
    return usage.peak


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "scout"
    run("sample", path, "--variant", "scout", "--size", "bench")
    return path


@pytest.fixture(scope="module")
def bench_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model of 0.4 billion parameters with two layers of the released tower."""
    path = tmp_path_factory.mktemp("bench") / "guard"
    run("sample", path, "--variant", "guard", "--size", "bench", "--vision")
    return path


def test_a_float_engine_of_a_model_of_1_88_billion_parameters(bench: Path, tmp_path: Path) -> None:
    """3.77 GB in, 7.54 GB out; the issue asks for less than 1.5 GB."""
    assert run("build", bench, "-o", tmp_path / "e") < 0.6 * GB
    run("run", tmp_path / "e", "--token-ids", "1,2,3", "--max-new-tokens", 4)


def test_an_int4_engine_of_it(bench: Path, tmp_path: Path) -> None:
    assert run("build", bench, "-o", tmp_path / "e", "--quant", "int4") < 0.6 * GB
    run("run", tmp_path / "e", "--token-ids", "1,2,3", "--max-new-tokens", 4)


def test_a_checkpoint_for_other_programs_of_it(bench: Path, tmp_path: Path) -> None:
    """1.17 GB out, with the embedding and the head in bfloat16."""
    options = ("--target", "compressed-tensors", "--quant", "int4")
    assert run("build", bench, "-o", tmp_path / "out", *options) < 0.6 * GB
    verify_checkpoint(tmp_path / "out")


def test_four_layers_of_full_size_take_no_more_than_one(tmp_path: Path) -> None:
    """Within a tenth; the weights are holes in the file."""
    run("sample", tmp_path / "full", "--variant", "scout", "--size", "full")
    one, four = (
        run("build", tmp_path / "full", "-o", tmp_path / f"e{stop}", "--quant", "int4", "--layers", f"0:{stop}")
        for stop in (1, 4)
    )
    assert four < 1.1 * one


@pytest.mark.parametrize(
    ("variant", "form", "quant"),
    [("maverick", "fp8", "int4"), ("scout", "w4a16", "int4"), ("scout", "w4a16", "none"), ("scout", "fp8", "none")],
)
def test_a_quantised_release_takes_no_more_than_floats(tmp_path: Path, variant: str, form: str, quant: str) -> None:
    """Within a tenth, of two layers of full size. Scales are written, and codes are holes in the file.

    Two layers of Maverick in floats would be 76 GB.
    """
    peaks = {}
    for each in ("float", form):
        path = tmp_path / each
        run("sample", path, "--variant", variant, "--size", "full", "--format", each)
        assert run("inspect", path) < 0.2 * GB and run("plan", path) < 0.3 * GB
        peaks[each] = run("build", path, "-o", tmp_path / "e", "--force", "--quant", quant, "--layers", "0:2")
    assert peaks[form] < 1.1 * peaks["float"], peaks


def test_a_tower_of_full_size_takes_nothing_more(tmp_path: Path) -> None:
    """Within a tenth: 3.49 GB of float32 on the way, beside a layer of Scout; the weights are holes in the file."""
    run("sample", tmp_path / "full", "--variant", "scout", "--size", "full", "--vision")
    arguments = ("build", tmp_path / "full", "-o", tmp_path / "e", "--force", "--quant", "int4", "--layers", "0:1")
    blind, seeing = (run(*arguments, "--vision", choice) for choice in ("none", "auto"))
    assert sum(file.stat().st_size for file in (tmp_path / "e").glob("vision*.data")) > 4 * 871_932_416
    assert seeing < 1.1 * blind


@pytest.mark.parametrize(("dtype", "tiles"), [("fp32", 1), ("fp32", 17), ("fp16", 17)])
def test_images_take_what_is_planned(bench_tower: Path, tmp_path: Path, dtype: str, tiles: int) -> None:
    """Two layers at the released width: what a process grows by when it sees an image twice, the tiles not counted.

    The plan is for 17 tiles, which take 0.85 of it or more.
    """
    options = ("--layers", "0:1", "--quant", "int8", "--max-context", 1024, "--vision-dtype", dtype)
    run("build", bench_tower, "-o", tmp_path / "e", *options)
    program = f"""if True:
        import numpy as np
        from l4export import runtimes
        from l4export.benchmark.memory import forget_peak, process_memory
        engine = runtimes.load({str(tmp_path / "e")!r}, threads=2)
        tiles = np.full(({tiles}, 3, 336, 336), 0.1, np.float32)
        before = process_memory()["VmRSS"]
        forget_peak()
        engine.image_features(tiles)
        features = engine.image_features(tiles)  # finds the memory of the first
        open({str(tmp_path / "grown")!r}, "w").write(str(process_memory()["VmHWM"] - before))
    """
    peak([sys.executable, "-c", program])
    vision = read_vision_config(bench_tower)
    assert vision is not None
    planned = vision_need(vision, read_config(bench_tower).hidden_size, "ort-cpu", dtype, "fp32").total
    grown = int((tmp_path / "grown").read_text())
    assert grown < planned
    assert grown > 0.85 * planned or tiles < TILES_PER_CALL[-1]


def test_the_streamed_reference_on_a_layer_of_full_size(tmp_path: Path) -> None:
    """One layer of Scout takes 9 GB in float32; its parts take turns. The issue asks for less than 3 GB."""
    run("sample", tmp_path / "full", "--variant", "scout", "--size", "full")
    program = f"""if True:
        from pathlib import Path
        import numpy as np
        from l4export.checkpoint import open_checkpoint
        from l4export.reference.streamed_model import StreamedReference
        streamed = StreamedReference(open_checkpoint(Path({str(tmp_path / "full")!r})), (3, 4))
        (taps,) = streamed.run(np.arange(512)[None])
        assert taps.hidden.shape == (1, 512, 5120)
        assert streamed.logits(taps.hidden[:, -8:]).shape == (1, 8, 202048)
    """
    assert peak([sys.executable, "-c", program]) < 2.5 * GB


def test_an_int4_engine_of_a_layer_of_full_size_is_compiled_for_three_kinds_of_gpu(tmp_path: Path) -> None:
    """With the embedding and the head of 202048 tokens. Compiled twice: of zeros TensorRT keeps less."""
    pytest.importorskip("tensorrt_rtx")
    run("sample", tmp_path / "full", "--variant", "scout", "--size", "full")
    arguments = ["--layers", "0:1", "--target", "tensorrt-rtx", "--dtype", "fp16", "--quant", "int4"]
    arguments += ["--compute-capability", "8.0,8.9,12.0"]
    run("build", tmp_path / "full", "-o", tmp_path / "e", *arguments)
    verify_files(tmp_path / "e")
    rng, size = np.random.default_rng(0), 0
    for value in ir.load(tmp_path / "e" / "decoder.onnx").graph.initializers.values():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            size += tensor.nbytes
            if (held := weights_of(value)) and held.part == "codes":
                with open(tmp_path / "e" / str(tensor.location), "r+b") as data:
                    data.seek(tensor.offset or 0)
                    data.write(rng.bytes(tensor.nbytes))
    command = [sys.executable, "-m", "l4export.targets.tensorrt.compile_process", "tensorrt_rtx"]
    command += [str(tmp_path / "e" / name) for name in ("decoder.onnx", "decoder.engine")]
    used = peak([*command, "8.0,8.9,12.0", "1,1,1", "2,512,512"])
    assert 0.99 * size < (tmp_path / "e" / "decoder.engine").stat().st_size < 1.01 * size
    assert 0.9 * compile_bytes(size) < used < compile_bytes(size)


def test_the_measurement_sees_memory() -> None:
    """A process that holds 1 GB is seen to hold it, and one that holds nothing is not, whatever these tests hold."""
    held = b"1" * 10**9
    assert peak([sys.executable, "-c", "x = b'1' * 10**9"]) > GB
    assert peak([sys.executable, "-c", "pass"]) < 0.1 * len(held)
