"""Engines of the native library: what they tell, what they refuse, and with which ONNX Runtime they run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from seeing import seeing_checkpoint, sign
from session_twins import Twins, conversation

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest
from l4export.errors import L4Error
from l4export.quantization.policy import standard_policy
from native_library import ONNXRUNTIME, ROOT, NativeError, build_native, onnxruntime_headers
from native_session import NativeEngine
from workshop import Workshop, random_ids

BAD_INPUT, ENVIRONMENT, VERIFICATION_FAILED = 2, 3, 1


def test_what_an_engine_tells(workshop: Workshop) -> None:
    path = workshop.engine_path("scout", "chunked")
    engine, manifest = NativeEngine(path, threads=2), load_manifest(path)
    info = engine.info
    assert engine.manifest == (path / "manifest.json").read_text()
    assert (info.vocab_size, info.max_context, info.prefill_cut) == (256, 256, 16)
    assert (info.kv_layout, info.provider, info.threads) == (b"chunked", b"CPUExecutionProvider", 2)
    assert info.eos_token_ids[: info.eos_token_count] == list(manifest.model.eos_token_ids)
    assert not info.sees_images
    assert ONNXRUNTIME.name.endswith(info.onnxruntime.decode())
    assert NativeEngine(path, threads=0).info.threads == len(os.sched_getaffinity(0))


def test_an_engine_that_is_not_as_it_was_built(workshop: Workshop, tmp_path: Path) -> None:
    """Refused with the words of the Python runtime."""
    source = workshop.engine_path("scout", "static")

    def damaged(name: str, change: Callable[[Path], object]) -> Path:
        change(shutil.copytree(source, tmp_path / name))
        return tmp_path / name

    def edit(path: Path, **fields: object) -> None:
        file = path / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    def flip_last_byte(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))

    cases = [
        tmp_path / "missing",
        damaged("no manifest", lambda path: (path / "manifest.json").unlink()),
        damaged("cut short", lambda path: (path / "decoder.onnx").write_bytes(b"abc")),
        damaged(
            "changed", lambda path: (path / "decoder.onnx").write_bytes((path / "decoder.onnx").read_bytes()[::-1])
        ),
        damaged("weights", lambda path: flip_last_byte(next(path.glob("*.data")))),
        damaged("newer", lambda path: edit(path, format_version=4)),
        damaged("unknown", lambda path: edit(path, requires=["teleportation"])),
        damaged("lacking", lambda path: (path / "decoder.onnx").unlink()),
    ]
    for path in cases:
        with pytest.raises(L4Error) as expected:
            runtimes.load(path)
        with pytest.raises(NativeError) as caught:
            NativeEngine(path)
        assert str(caught.value) == str(expected.value)
        assert caught.value.status == expected.value.exit_code


def test_weights_that_have_been_changed_are_the_better_reason(workshop: Workshop, tmp_path: Path) -> None:
    """Their digests are found while ONNX Runtime loads them; whatever it says, they are what is told."""
    path = shutil.copytree(workshop.engine_path("scout", "static"), tmp_path / "engine")
    sign(path, "decoder.onnx", b"no graph at all")
    weights = next(path.glob("*.data"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(NativeError, match=rf"{weights.name} has been changed; build or copy the engine again"):
        NativeEngine(path)


def test_verification(workshop: Workshop, tmp_path: Path) -> None:
    path = shutil.copytree(workshop.engine_path("scout", "static"), tmp_path / "engine")
    NativeEngine(path, verify=1)
    with open(path / "decoder-00001-of-00001.data", "r+b") as file:
        file.write(b"\1")
    with pytest.raises(NativeError, match=r"decoder-00001-of-00001") as caught:
        NativeEngine(path, verify=1)
    assert caught.value.status == VERIFICATION_FAILED


def test_a_graph_that_is_not_as_the_manifest_says(workshop: Workshop, tmp_path: Path) -> None:
    import onnx

    path = shutil.copytree(workshop.engine_path("scout", "static"), tmp_path / "engine")
    model = onnx.load(path / "decoder.onnx", load_external_data=False)
    for values in (model.graph.input, model.graph.output):
        for value in values:
            if value.type.tensor_type.shape.dim and value.type.tensor_type.shape.dim[0].dim_param == "batch":
                value.type.tensor_type.shape.dim[0].dim_param = "rows"
    sign(path, "decoder.onnx", model.SerializeToString())
    with pytest.raises(NativeError, match=r"has other inputs or outputs than manifest.json declares"):
        NativeEngine(path)
    sign(path, "decoder.onnx", b"no graph at all")
    with pytest.raises(NativeError, match=r"decoder.onnx: ONNX Runtime [0-9.]+ cannot load it \("):
        NativeEngine(path)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("int other(void) { return 0; }", "is not ONNX Runtime (it has no OrtGetApiBase)"),
        (
            'static const char* version(void) { return "1.20.1"; } static struct { const void* (*api)(unsigned); const '
            "char* (*version)(void); } base = {0, version}; void* OrtGetApiBase(void) { return &base; }",
            "is ONNX Runtime 1.20.1, which is too old",
        ),
    ],
)
def test_another_library_is_refused(workshop: Workshop, tmp_path: Path, source: str, why: str) -> None:
    """By its name, with what to do; nobody is asked for a table that it does not have."""
    library = tmp_path / "libonnxruntime.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-xc", "-", "-o", library], input=source, text=True, check=True)
    with pytest.raises(NativeError) as caught:
        NativeEngine(workshop.engine_path("scout", "static"), onnxruntime=str(library))
    assert caught.value.status == ENVIRONMENT
    assert str(caught.value).startswith(f"{library}: {why}; install ONNX Runtime 1.21 or later")


@pytest.mark.parametrize("version", ["1.23.2", "1.23"])
def test_a_library_older_than_a_graph_needs_is_refused(workshop: Workshop, tmp_path: Path, version: str) -> None:
    """It serves the table of functions, of which none may be called but the one that makes an environment."""
    library, path = tmp_path / "libonnxruntime.so", workshop.engine_path("scout", "static")
    source = f"""
        #include <onnxruntime_c_api.h>
        static const char* version(void) {{ return "{version}"; }}
        static OrtStatusPtr create(OrtLoggingLevel level, const char* id, OrtEnv** out) {{ *out = 0; return 0; }}
        static void release(OrtEnv* environment) {{}}
        static OrtApi api;
        static const OrtApi* serve(uint32_t number) {{ api.CreateEnv = create; api.ReleaseEnv = release; return &api; }}
        static const OrtApiBase base = {{serve, version}};
        const OrtApiBase* OrtGetApiBase(void) {{ return &base; }}
    """
    command = ["cc", "-shared", "-fPIC", f"-I{onnxruntime_headers()}", "-xc", "-", "-o", library]
    subprocess.run(command, input=source, text=True, check=True)
    with pytest.raises(NativeError) as caught:
        NativeEngine(path, onnxruntime=str(library))
    assert caught.value.status == ENVIRONMENT
    assert str(caught.value) == (
        f"{path}/decoder.onnx: needs ONNX Runtime 1.24 or later, and {library} is {version}; install a newer one, and "
        "give its path where it is not found"
    )


def test_every_graph_that_is_loaded_counts(tmp_path: Path) -> None:
    build(seeing_checkpoint(tmp_path / "c"), tmp_path / "e", BuildOptions(max_context=64))
    for least, accepted in ((None, True), ("1.24", True), ("999.0", False)):
        for graph in ("decoder", "vision"):
            path = tmp_path / "e/manifest.json"
            whole = path.read_text()
            manifest = json.loads(whole)
            manifest["graphs"][graph]["runtime"].pop("min_version")
            manifest["graphs"][graph]["runtime"] |= {"min_version": least} if least else {}
            path.write_text(json.dumps(manifest))
            if accepted:
                NativeEngine(tmp_path / "e")
            else:
                with pytest.raises(NativeError, match=rf"{graph}\.onnx: needs ONNX Runtime 999\.0 or later") as caught:
                    NativeEngine(tmp_path / "e")
                assert caught.value.status == ENVIRONMENT
            path.write_text(whole)


def test_a_library_that_is_not_there(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workshop.engine_path("scout", "static")
    with pytest.raises(NativeError, match="/nowhere: cannot be opened as ONNX Runtime") as caught:
        NativeEngine(path, onnxruntime="/nowhere")
    assert caught.value.status == ENVIRONMENT
    monkeypatch.setenv("L4EXPORT_ONNXRUNTIME", "/elsewhere")
    with pytest.raises(NativeError, match="/elsewhere: cannot be opened"):
        NativeEngine(path, onnxruntime=None)
    monkeypatch.setenv("L4EXPORT_ONNXRUNTIME", str(ONNXRUNTIME))
    assert NativeEngine(path, onnxruntime=None).info.vocab_size == 256


def test_options_out_of_range(workshop: Workshop) -> None:
    path = workshop.engine_path("scout", "static")
    for options, why in (
        ({"provider": "tpu"}, "provider is 'tpu'"),
        ({"provider": "cuda"}, "cannot be executed by 'cuda': it is for ort-cpu"),
        ({"threads": 1025}, "threads is 1025: give a whole number, 0 to 1024"),
        ({"threads": -1}, "threads is -1"),
    ):
        with pytest.raises(NativeError, match=why) as caught:
            NativeEngine(path, **options)  # type: ignore[arg-type]
        assert caught.value.status == BAD_INPUT


@pytest.mark.parametrize("quant", ["none", "int4", "int8"])
def test_an_engine_for_a_gpu_on_the_cpu(wide_scout: Path, tmp_path: Path, quant: str) -> None:
    """Packed experts are unpacked; the numbers are those of the Python runtime with provider cpu."""
    path = tmp_path / "engine"
    policy = standard_policy(quant)
    build(
        wide_scout,
        path,
        BuildOptions(target="ort-cuda", dtype="fp16", kv_layout="chunked", max_context=96, policy=policy),
    )
    python, native = runtimes.load(path, threads=1, provider="cpu"), NativeEngine(path, provider="cpu")
    assert native.info.provider == b"CPUExecutionProvider instead of CUDAExecutionProvider" == python.provider.encode()
    conversation_of_a_row = Twins(python.session(), native.session())
    ids = random_ids(60, seed=3).tolist()
    for piece in (ids[:40], ids[40:41], ids[41:]):
        conversation_of_a_row.append([piece])
    with pytest.raises(NativeError, match="an ort-cuda engine runs on an NVIDIA GPU") as caught:
        NativeEngine(path)
    assert caught.value.status == ENVIRONMENT


def test_other_numbers_of_threads(workshop: Workshop) -> None:
    """Opened twice, side by side, with two and three threads; both go through a conversation."""
    path = workshop.engine_path("maverick", "static")
    python = runtimes.load(path, threads=2)
    conversation(Twins(python.session(2), NativeEngine(path, threads=2).session(2)))


def test_a_step_allocates_nothing_and_copies_no_cache(workshop: Workshop, tmp_path: Path) -> None:
    """Counted in a process of its own by a preloaded library, which sees who asks for memory, and for how much.

    A cache that is copied would be an allocation of at least its size; these have several MiB each.
    """
    counter = tmp_path / "counter.so"
    source = ROOT / "tests/support/allocation_counter.c"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-fno-builtin", source, "-o", counter], check=True)
    engine = workshop.engine_path("scout", "static", 4096)
    build_native()
    done = subprocess.run(
        [sys.executable, ROOT / "tests/support/count_step_allocations.py", engine, counter],
        env={**os.environ, "LD_PRELOAD": str(counter), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    steps, fork = done.stdout.splitlines()
    allocations, largest = map(int, steps.split())
    session = runtimes.load(engine, threads=1).session(32)
    of_one_cache = session.kv_bytes // 2 // session.manifest.model.num_hidden_layers
    assert of_one_cache >= 4 << 20
    assert allocations == 0
    assert largest < of_one_cache
    assert int(fork) > 0  # the counter counts
