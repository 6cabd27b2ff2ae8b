"""What `llama_cpp_peer.py` runs inside the peer's own virtual environment: nothing here imports l4export.

    python llama_cpp_inside.py SOURCE convert CHECKPOINT OUT.gguf TYPE
    python llama_cpp_inside.py SOURCE describe MODEL.gguf
    python llama_cpp_inside.py SOURCE route MODEL.gguf LIBRARIES TOKENS THREADS [--ids IDS.npy] [--logits OUT.npy]

SOURCE is the unpacked source package of llama-cpp-python. `describe` and `route` print one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np


def convert(source: Path, checkpoint: Path, out: Path, outtype: str) -> None:
    """Runs llama.cpp's own convert_hf_to_gguf.py, without a vocabulary where it could not convert the tokenizer.

    The converter insists on a tokenizer whose pre-tokenizer it knows by its hash, which neither a checkpoint without a
    tokenizer nor a home-made one can offer. Their vocabulary is left out, with the converter's own `_set_vocab_none`
    (tokenizer model "none", as it does for models without text): token numbers work, text does not, every tensor is
    converted exactly as always.
    """
    sys.path.insert(0, str(source / "vendor" / "llama.cpp"))
    import convert_hf_to_gguf  # type: ignore[import-not-found]
    from conversion.llama import Llama4Model  # type: ignore[import-not-found]

    convert_vocabulary = Llama4Model.set_vocab

    def set_vocab(model: Any) -> None:
        if any((checkpoint / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
            with contextlib.suppress(NotImplementedError):  # a pre-tokenizer that it does not know
                return convert_vocabulary(model)
        return model._set_vocab_none()

    Llama4Model.set_vocab = set_vocab
    sys.argv = ["convert_hf_to_gguf.py", str(checkpoint), "--outfile", str(out), "--outtype", outtype]
    convert_hf_to_gguf.main()


def describe(source: Path, model: Path) -> dict[str, Any]:
    """Metadata of a GGUF file, and for every tensor type the number of tensors, elements and bytes."""
    sys.path.insert(0, str(source / "vendor" / "llama.cpp" / "gguf-py"))
    import gguf  # type: ignore[import-not-found]

    reader = gguf.GGUFReader(model)
    metadata = {}
    for name, field in reader.fields.items():
        value = field.contents() if not name.startswith(("tokenizer.", "GGUF.")) else None
        if isinstance(value, str | int | float | bool):
            metadata[name] = value
    types: dict[str, dict[str, int]] = {}
    for tensor in reader.tensors:
        held = types.setdefault(tensor.tensor_type.name, {"tensors": 0, "elements": 0, "bytes": 0})
        held["tensors"] += 1
        held["elements"] += int(tensor.n_elements)
        held["bytes"] += int(tensor.n_bytes)
    return {
        "metadata": metadata,
        "parameters": sum(held["elements"] for held in types.values()),
        "types": types,
        "tensors": {tensor.name: tensor.tensor_type.name for tensor in reader.tensors},
    }


def route(
    source: Path, model: Path, libraries: Path, tokens: int, threads: int, ids: Path | None, logits: Path | None
) -> dict[str, Any]:
    """Prefills token numbers and watches which experts every MoE layer picks (the tensors `ffn_moe_topk-<layer>`)."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(libraries)
    sys.path.insert(0, str(source))
    from llama_cpp import llama_cpp as api  # type: ignore[import-not-found]

    ggml = ctypes.CDLL(str(libraries / "libggml-base.so"))
    ggml.ggml_get_name.restype, ggml.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    ggml.ggml_nbytes.restype, ggml.ggml_nbytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    ggml.ggml_backend_tensor_get.restype = None
    ggml.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]

    metadata = describe(source, model)["metadata"]
    vocabulary, used = metadata["llama4.vocab_size"], metadata["llama4.expert_used_count"]
    numbers = np.load(ids) if ids else np.random.default_rng(0).integers(0, vocabulary, tokens)
    tokens = len(numbers)
    picked: dict[int, list[int]] = {}  # layer: the experts, token by token

    @api.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator]
    def watch(tensor: int, ask: bool, _: Any) -> bool:
        name = ggml.ggml_get_name(tensor).decode()
        if not name.startswith("ffn_moe_topk-"):
            return not ask
        if not ask:
            raw = np.empty(ggml.ggml_nbytes(tensor) // 4, np.int32)
            ggml.ggml_backend_tensor_get(tensor, raw.ctypes.data, 0, raw.nbytes)
            # `used` numbers a token, at the head of a row that may be longer (a view of the sorted experts). The bytes
            # of such a view end with the last number that counts, so the row length follows from the size.
            stride = (raw.size - used) // max(tokens - 1, 1)
            chosen = [int(raw[row * stride + k]) for row in range(tokens) for k in range(used)]
            picked.setdefault(int(name.rsplit("-", 1)[1]), []).extend(chosen)
        return True

    api.llama_backend_init()
    handle = api.llama_load_model_from_file(str(model).encode(), api.llama_model_default_params())
    parameters = api.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = max(512, tokens)
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.cb_eval = watch
    context = api.llama_new_context_with_model(handle, parameters)
    batch = api.llama_batch_init(tokens, 0, 1)
    batch.n_tokens = tokens
    for position, number in enumerate(numbers):
        batch.token[position], batch.pos[position] = int(number), position
        batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        batch.logits[position] = True  # of every token, or the last layer would work on the last token alone
    if status := api.llama_decode(context, batch):
        raise SystemExit(f"llama_decode failed with status {status}")
    if logits:
        pointers = [api.llama_get_logits_ith(context, position) for position in range(tokens)]
        np.save(logits, np.stack([np.ctypeslib.as_array(pointer, (vocabulary,)) for pointer in pointers]))
    count = {layer: dict(sorted(Counter(chosen).items())) for layer, chosen in sorted(picked.items())}
    return {"tokens": tokens, "experts": metadata["llama4.expert_count"], "experts_per_token": used, "picked": count}


def main() -> None:
    """Reads the command line, does one of the three things."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("convert")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("outtype")
    command = commands.add_parser("describe")
    command.add_argument("model", type=Path)
    command = commands.add_parser("route")
    command.add_argument("model", type=Path)
    command.add_argument("libraries", type=Path)
    command.add_argument("tokens", type=int)
    command.add_argument("threads", type=int)
    command.add_argument("--ids", type=Path)
    command.add_argument("--logits", type=Path)
    given = vars(parser.parse_args())
    answer = {"convert": convert, "describe": describe, "route": route}[given.pop("command")](**given)
    if answer is not None:
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
