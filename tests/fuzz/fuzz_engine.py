"""Class `engine`: engine directories, inspected, opened and run."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fuzz_case import Case, Subject
from fuzz_files import Files, read_files, replace_file, write_files
from fuzz_json import damaged_text, dumps, mutate_json
from fuzz_tokenizer import mutate_tokenizer
from fuzz_valid import small_checkpoint, tokenizers

__all__ = ["EngineSubject"]

_ENGINES: dict[str, dict[str, Any]] = {
    "static": {},
    "chunked-int8": {"kv_layout": "chunked", "kv_dtype": "int8"},
    "concat": {"kv_layout": "concat"},
    "int4": {"quant": "int4"},
    "onnx": {"target": "onnx"},
}
_PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
_NEXT = [21]
_WORDS = [
    *("static", "chunked", "concat", "fp32", "fp16", "int8", "int4", "fp8", "float32", "int64", "uint8", "full"),
    *("ort-cpu", "ort-cuda", "tensorrt", "onnxruntime", "cpu", "cuda", "batch", "tokens", "decoder.onnx"),
    *(None, "0" * 64, [0, 1], ["batch", 8, 64, 16], 8, 16, 17, 63, 64, 65, 256, 10**9),
]
_DATA_KEYS = {"location": ["../x", "/dev/zero", "/etc/passwd", "", "nothing", "manifest.json", "."]}
_DATA_KEYS |= {key: ["0", "-1", "1", str(2**40), str(2**63), "x", ""] for key in ("offset", "length")}


class EngineSubject(Subject):
    """Engines of two layers, of the layouts and dtypes that change how a runtime feeds them."""

    name = "engine"

    def prepare(self) -> None:
        """One engine of each kind, with a tokenizer."""
        import l4export
        from l4export.quantization.policy import standard_policy

        small_checkpoint(self.valid / "checkpoint", "scout")
        for file, data in tokenizers()["bpe"].items():
            (self.valid / "checkpoint" / file).write_bytes(data)
        for name, options in _ENGINES.items():
            given = {"max_context": 64, "jobs": 1, **options}
            if kind := given.pop("quant", None):
                given["policy"] = standard_policy(kind)
            l4export.build(self.valid / "checkpoint", self.valid / name, l4export.BuildOptions(**given))
        shutil.rmtree(self.valid / "checkpoint")

    def begin(self) -> None:
        """What the engines compute when nobody has changed them."""
        self.files = {name: read_files(self.valid / name) for name in _ENGINES}
        self.logits = {name: _run(self.valid / name, verify=True) for name in _ENGINES}
        for logits in self.logits.values():
            assert np.isfinite(logits).all()

    def make(self, rng: random.Random, place: Path) -> Case:
        """One to three changes; mostly the manifest then has the digests of what is there."""
        name = rng.choice(sorted(_ENGINES))
        files, what = dict(self.files[name]), [name]
        changed = {rng.choice(["manifest", "manifest", "graph", "graph", "data", "text"])}
        if rng.random() < 0.15:
            changed.add(rng.choice(["manifest", "graph", "data"]))
        for part in sorted(changed - {"manifest"}):
            what.append(_PARTS[part](files, rng))
        if changed != {"manifest"} and rng.random() < 0.9:
            _record(files)
            what.append("digests are right")
        if "manifest" in changed:
            what.append(_change_manifest(files, rng))
        write_files(place / "engine", files)
        if rng.random() < 0.15:
            what.append(replace_file(place / "engine" / rng.choice(sorted(files)), rng))
            changed.add("file")
        if rng.random() < 0.05:
            (place / "engine" / rng.choice(["more", "é", ".x", "decoder-00002-of-00002.data"])).write_bytes(b"x")
        expected = self.logits[name] if changed == {"manifest"} else None
        verify = rng.random() < 0.3
        return Case(lambda: _use(place / "engine", verify, expected), what)


def _use(engine: Path, verify: bool, expected: np.ndarray | None) -> None:
    """Inspect, open and run an engine; `expected` are the logits of one whose manifest alone was changed."""
    import l4export
    from l4export.errors import CheckFailed, InputError

    try:
        l4export.inspect(engine)
        logits = _run(engine, verify)
    except CheckFailed as error:  # a verdict, and so not an error of the input
        raise InputError(str(error)) from error
    if expected is not None:
        assert logits.shape == expected.shape, f"logits of shape {logits.shape}"
        worst, most = np.abs(logits - expected).max(), np.abs(expected).max()
        assert worst <= 0.02 * most, f"logits are {worst:.3g} off, of {most:.3g}"


def _run(path: Path, verify: bool) -> np.ndarray:
    """Logits [2, vocab] of a prompt and of one more token in a copy of the session; text and tokens are tried too."""
    import l4export

    engine = l4export.load(path, threads=1, verify=verify)
    tokens = list(engine.generate(_PROMPT, max_new_tokens=2))
    assert all(0 <= token < engine.manifest.model.vocab_size for token in tokens), f"tokens {tokens}"
    session = engine.session()
    first = session.append(_PROMPT, last_only=True)[0, -1]
    second = session.fork().append(_NEXT)[0, -1]
    if codec := engine.text:
        codec.decode(codec.encode("And God said"))
    list(engine.generate(_PROMPT, 2, engine.recommended_sampling))
    return np.stack([first, second])


def _record(files: Files) -> None:
    """Make the manifest's sizes and digests those of the files."""
    manifest = json.loads(files["manifest.json"])
    for name in manifest["files"]:
        if name in files:
            manifest["files"][name] = {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
    files["manifest.json"] = json.dumps(manifest).encode()


def _change_manifest(files: Files, rng: random.Random) -> str:
    manifest, told = json.loads(files["manifest.json"]), []
    for _ in range(rng.choice([1, 1, 2])):
        if isinstance(manifest, dict) and manifest:
            manifest, change = mutate_json(manifest, rng, _WORDS)
            told.append(change)
    files["manifest.json"] = dumps(manifest).encode()
    if rng.random() < 0.1:
        files["manifest.json"], damage = damaged_text(files["manifest.json"].decode(), rng)
        told.append(damage)
    return f"manifest: {told}"


def _change_data(files: Files, rng: random.Random) -> str:
    name = next(name for name in files if name.endswith(".data"))
    data = bytearray(files[name])
    start = rng.randrange(len(data))
    way = rng.choice(["zeros", "ones", "random", "cut", "grown"])
    length = rng.choice([1, 4, 4096, len(data)])
    if way == "cut":
        files[name] = bytes(data[:start])
    elif way == "grown":
        files[name] = bytes(data) + bytes(length)
    else:
        count = len(data[start : start + length])
        data[start : start + length] = {"zeros": bytes(count), "ones": b"\xff" * count}.get(way) or rng.randbytes(count)
        files[name] = bytes(data)
    return f"{name}: {way} from {start}"


def _change_text(files: Files, rng: random.Random) -> str:
    if rng.random() < 0.5:
        files["tokenizer.json"], told = mutate_tokenizer(files["tokenizer.json"], rng)
        return f"tokenizer.json: {told}"
    names = ["tokenizer_config.json", "generation_config.json"]
    name = rng.choice([*names, "genai_config.json" if "genai_config.json" in files else "tokenizer.json"])
    files[name], change = damaged_text(files[name].decode(), rng)
    return f"{name}: {change}"


def _change_graph(files: Files, rng: random.Random) -> str:
    """Another graph, of the fields that a graph has; or bytes that are none."""
    if rng.random() < 0.15:
        data = bytearray(files["decoder.onnx"])
        for _ in range(rng.choice([1, 5, 100])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        files["decoder.onnx"] = bytes(data[: len(data) if rng.random() < 0.7 else rng.randrange(len(data))])
        return "graph: bytes changed"
    model = onnx.load_from_string(files["decoder.onnx"])
    told = [_mutate_model(model, rng) for _ in range(rng.choice([1, 1, 2]))]
    files["decoder.onnx"] = model.SerializeToString()
    return f"graph: {told}"


def _mutate_model(model: onnx.ModelProto, rng: random.Random) -> str:
    graph = model.graph
    way = rng.randrange(9)
    if way <= 1:
        return _mutate_initializer(rng.choice(graph.initializer), rng)
    if way <= 3:
        return _mutate_node(rng.choice(graph.node), graph, rng)
    if way == 4:
        attributes = [(node, attribute) for node in graph.node for attribute in node.attribute]
        node, attribute = rng.choice(attributes)
        return f"{node.op_type}.{_mutate_attribute(attribute, rng)}"
    if way == 5:
        index = rng.randrange(len(graph.node))
        node = graph.node[index]
        if rng.random() < 0.5:
            graph.node.add().CopyFrom(node)
            return f"{node.op_type} twice"
        told = node.op_type
        del graph.node[index]
        return f"{told} removed"
    if way == 6:
        value = rng.choice([*graph.input, *graph.output, *graph.value_info])
        dims = value.type.tensor_type.shape.dim
        if dims and rng.random() < 0.7:
            rng.choice(dims).dim_value = rng.choice([0, 1, -1, 2**31, 2**62])
        elif rng.random() < 0.5:
            value.type.tensor_type.elem_type = rng.choice([0, 1, 7, 10, 16, 999])
        else:
            value.name = rng.choice(["", "x", "logits", "input_ids"])
        return f"value {value.name} is another"
    if way == 7:
        opset = rng.choice(model.opset_import)
        opset.version = rng.choice([0, -1, 1, 7, 999, 2**40])
        return f"opset {opset.domain!r} {opset.version}"
    model.ir_version = rng.choice([0, -1, 1, 99, 2**40])
    return f"IR version {model.ir_version}"


def _mutate_initializer(tensor: onnx.TensorProto, rng: random.Random) -> str:
    way = rng.randrange(5)
    if way == 0 and tensor.external_data:
        entry = rng.choice(tensor.external_data)
        entry.value = rng.choice(_DATA_KEYS.get(entry.key, ["x"]))
        return f"{tensor.name}: {entry.key} {entry.value!r}"
    if way == 1 and tensor.dims:
        index = rng.randrange(len(tensor.dims))
        tensor.dims[index] = rng.choice([0, 1, -1, tensor.dims[index] * 2, tensor.dims[index] + 1, 2**31, 2**62])
        return f"{tensor.name}: dims {list(tensor.dims)}"
    if way == 2:
        tensor.data_type = rng.choice([0, 1, 2, 3, 6, 7, 8, 10, 16, 21, 22, 999])
        return f"{tensor.name}: data type {tensor.data_type}"
    if way == 3:
        tensor.data_location = rng.choice([0, 1])
        tensor.raw_data = rng.choice([b"", b"\0", rng.randbytes(64), b"\xff" * 8, tensor.raw_data * 2])
        return f"{tensor.name}: {len(tensor.raw_data)} bytes inside"
    tensor.name = rng.choice(["", "x", "logits", "input_ids"])
    return f"an initializer is called {tensor.name!r}"


def _mutate_node(node: onnx.NodeProto, graph: onnx.GraphProto, rng: random.Random) -> str:
    names = [*(name for other in graph.node for name in other.output), *(value.name for value in graph.initializer)]
    way = rng.randrange(5)
    if way == 0:
        node.op_type = rng.choice(["Identity", "Nothing", "MatMul", "Add", "Reshape", "Gather", "Loop", "Scan", "Cast"])
        return f"a node is now {node.op_type}"
    if way == 1:
        node.domain = rng.choice(["", "com.microsoft", "nowhere", "com.microsoft.nchwc"])
        return f"{node.op_type} of domain {node.domain!r}"
    if way == 2 and node.input:
        index = rng.randrange(len(node.input))
        node.input[index] = rng.choice([*names, "", "nothing"])
        return f"{node.op_type}: input {index} is {node.input[index]!r}"
    if way == 3 and node.input:
        told = node.input.pop()
        return f"{node.op_type} without input {told!r}"
    index = rng.randrange(len(node.output))
    node.output[index] = rng.choice([*names, "", "logits"])
    return f"{node.op_type}: output {index} is {node.output[index]!r}"


def _mutate_attribute(attribute: onnx.AttributeProto, rng: random.Random) -> str:
    integer = rng.choice([0, 1, -1, 2, 3, 7, 64, 2**31 - 1, 2**31, 2**62, -(2**63)])
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = integer
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e38])
    elif attribute.type == onnx.AttributeProto.INTS:
        attribute.ints[:] = rng.choice([[], [integer], [*attribute.ints, integer], [integer] * 50])
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = rng.choice([b"", b"x", b"\xff\0", b"a" * 5000])
    else:
        attribute.type = rng.choice([1, 2, 3, 4, 7])
    return f"{attribute.name} of type {attribute.type}: {integer}"


_PARTS = {"graph": _change_graph, "data": _change_data, "text": _change_text}
