"""Thin runtimes: open an engine directory, own its KV cache, sample, stream.

They need neither PyTorch nor transformers:

    engine = l4export.runtimes.load("engine/")
    session = engine.session(batch=1)
    logits = session.append(token_ids)                  # float32 [batch, tokens, vocab]
    logits = session.append(token_ids, last_only=True)  # float32 [batch, 1, vocab]
    for token in engine.generate(token_ids, max_new_tokens=64): ...

`l4export.runtimes.serving.Batcher` answers many requests at the same time. For onnxruntime-genai, which runs engines by
itself, `genai_inputs` makes prompts with images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from l4export.errors import InputError
from l4export.runtimes.genai import genai_inputs

if TYPE_CHECKING:
    from l4export.runtimes.engine import Engine

__all__ = ["genai_inputs", "load"]

_MOST_THREADS = 1024


def load(path: str | Path, threads: int | None = None, verify: bool = False, provider: str | None = None) -> Engine:
    """Open an engine directory with the runtime that its manifest names.

    `threads` is the number of threads of one call on a CPU; None means one a core. The sizes of all files are checked,
    and the digests of those up to 64 MiB; with `verify` every byte is, which takes as long as reading the engine.

    An engine runs only on what it was built for. The exception is `provider="cpu"`, which gives the numbers of an
    `ort-cuda` engine where there is no GPU.

    Raises:
        CheckFailed: with `verify`, a file that differs from the manifest.
        InputError: an argument of a wrong type, not an engine, a file that is missing or damaged, a runtime that this
            version does not have.
        EnvironmentLacks: a package, an execution provider, a driver or a GPU is missing.
    """
    from l4export.engine.manifest import load_manifest, verify_files  # here, as helper processes import this package
    from l4export.runtimes.arguments import a_flag, a_path, a_whole_number

    directory, verify = a_path(path, "path"), a_flag(verify, "verify")
    if threads is not None:
        threads = a_whole_number(threads, "threads", 1, _MOST_THREADS)
    manifest = verify_files(directory) if verify else load_manifest(directory)
    runtime = manifest.decoder.runtime
    if provider is not None and (provider != "cpu" or runtime.name != "onnxruntime"):
        raise InputError(f"{directory}: cannot be executed by {provider!r}: it is for {manifest.target}")
    match runtime.name, runtime.provider:
        case "onnxruntime", "cpu" | "cuda":
            from l4export.runtimes.onnxruntime.engine import OnnxRuntimeEngine

            return OnnxRuntimeEngine(directory, manifest, threads, provider)
        case "tensorrt", "tensorrt-rtx" | "tensorrt":
            from l4export.runtimes.tensorrt.engine import TensorRTEngine

            return TensorRTEngine(directory, manifest)
    raise InputError(f"{directory}: runs on {runtime}, which this l4export does not have; upgrade it")
