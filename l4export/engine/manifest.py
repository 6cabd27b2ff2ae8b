"""The engine directory's manifest: the contract between build and run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4export.engine.kv_cache import KV_DTYPES
from l4export.errors import CheckFailed, InputError, StorageError
from l4export.model.config import ModelConfig
from l4export.storage.file_records import FileReader, FileRecord

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "EnginePart",
    "KVLayer",
    "Manifest",
    "load_manifest",
    "verify_files",
]

MANIFEST = "manifest.json"
FORMAT = "l4export-engine"
FORMAT_VERSION = 2
KV_LAYOUTS = ("concat", "static", "chunked")
KV_KINDS = ("chunked", "full")
DTYPES = ("fp32", "fp16", "bf16")
_MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class KVLayer:
    """One layer's cache: `kind` is `chunked` or `full` attention; `capacity` in slots, null where it grows."""

    kind: str
    capacity: int | None


@dataclass(frozen=True)
class EnginePart:
    """One of the compiled engines that make up a decoder, run one after the other.

    `layers` are [first, behind the last]. `graph` and `engine` are files of the directory. `inputs` and `outputs` are
    told as the decoder's are; what a part gives under a name, the next one takes under the same name.
    """

    layers: tuple[int, int]
    graph: str
    engine: str
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Manifest:
    """Everything a runtime needs to know of an engine, and what it was made from. No timestamps."""

    generator: str
    target: str
    model: ModelConfig
    precision: dict[str, str]
    """`compute`, `weights`, `kv_cache` and (in products with FP8 weights) `activations` dtypes; `quant`."""
    max_context: int
    """Longest sequence, in tokens, that a session may hold."""
    kv_layout: str
    kv_layers: tuple[KVLayer, ...]
    prefill_max_tokens: int
    """A runtime feeds at most this many tokens a call: attention scores take [heads, tokens, total] floats."""
    prefill_cut: int | None
    """New tokens of one call must not lie on both sides of a position that is a multiple of this; None: anywhere."""
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    parts: tuple[EnginePart, ...]
    """The compiled engines in the order in which they run; none where a runtime reads `decoder.onnx`."""
    passes: tuple[str, ...]
    options: dict[str, Any]
    source: dict[str, FileRecord]
    """The checkpoint's files that the engine was made from, by name."""
    files: dict[str, FileRecord]
    """The engine's files, all but the manifest, by name."""

    def to_json(self) -> str:
        """The manifest file's text; the same manifest gives the same bytes."""
        raw = dataclasses.asdict(self)
        raw["model"] = self.model.to_dict()
        kv = {"layout": raw.pop("kv_layout"), "layers": raw.pop("kv_layers")}
        prefill = {
            "max_tokens_per_call": raw.pop("prefill_max_tokens"),
            "cut_at_multiples_of": raw.pop("prefill_cut"),
        }
        ordered = {"format": FORMAT, "format_version": FORMAT_VERSION, **raw, "kv_cache": kv, "prefill": prefill}
        return json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"


def load_manifest(engine: Path) -> Manifest:
    """Read an engine directory's manifest.

    Raises:
        InputError: no such directory or manifest, not JSON, a newer format version, a field missing or of a wrong type.
    """
    path = engine / MANIFEST
    if not engine.is_dir():
        raise InputError(f"{engine}: no such engine directory; build one with `l4export build`")
    if not path.is_file():
        raise InputError(f"{engine}: not an engine directory (no {MANIFEST}); build one with `l4export build`")
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise InputError(f"{path}: too large for a manifest (over {_MAX_MANIFEST_BYTES >> 20} MiB); build it again")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({type(error).__name__}); build the engine again") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; check permissions") from error
    return _parse(raw, str(path))


def _parse(raw: Any, where: str) -> Manifest:
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise InputError(f"{where}: not an l4export manifest; build the engine again")
    version = raw.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"{where}: format_version is not a positive number; build the engine again")
    if version < FORMAT_VERSION:
        raise InputError(
            f"{where}: format version {version} is older than this l4export reads ({FORMAT_VERSION}); "
            "build the engine again"
        )
    if version > FORMAT_VERSION:
        raise InputError(
            f"{where}: format version {version} is newer than this l4export reads ({FORMAT_VERSION}); upgrade l4export"
        )
    try:
        return Manifest(
            generator=_typed(raw, "generator", str),
            target=_typed(raw, "target", str),
            model=ModelConfig.from_dict(_typed(raw, "model", dict), f"{where}: model"),
            precision=_precision(_typed(raw, "precision", dict)),
            max_context=_positive(raw, "max_context"),
            kv_layout=_one_of(raw["kv_cache"], "layout", KV_LAYOUTS),
            kv_layers=_kv_layers(raw),
            prefill_max_tokens=_positive(raw["prefill"], "max_tokens_per_call"),
            prefill_cut=_positive_or_null(raw["prefill"], "cut_at_multiples_of"),
            inputs=_tuple(raw, "inputs", dict),
            outputs=_tuple(raw, "outputs", dict),
            parts=_parts(raw),
            passes=_tuple(raw, "passes", str),
            options=_typed(raw, "options", dict),
            source=_records(raw, "source"),
            files=_records(raw, "files"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"{error.args[0]}" if error.args else type(error).__name__
        raise InputError(f"{where}: field missing or malformed ({detail}); build the engine again") from error


def _records(raw: Mapping[str, Any], key: str) -> dict[str, FileRecord]:
    return {
        _plain_name(name): FileRecord(_count(record, "bytes"), _typed(record, "sha256", str))
        for name, record in _typed(raw, key, dict).items()
    }


def _kv_layers(raw: Mapping[str, Any]) -> tuple[KVLayer, ...]:
    layers = tuple(_kv_layer(layer) for layer in _typed(raw["kv_cache"], "layers", list))
    if len(layers) != raw["model"]["num_hidden_layers"]:
        raise TypeError("kv_cache must list every layer")
    return layers


def _kv_layer(raw: Mapping[str, Any]) -> KVLayer:
    return KVLayer(_one_of(raw, "kind", KV_KINDS), _positive_or_null(raw, "capacity"))


def _parts(raw: Mapping[str, Any]) -> tuple[EnginePart, ...]:
    """Absent in manifests that were written before there were any."""
    parts = tuple(_part(part) for part in _tuple(raw, "parts", dict)) if "parts" in raw else ()
    starts, stops = ([part.layers[end] for part in parts] for end in (0, 1))
    ordered = all(start < stop for start, stop in zip(starts, stops, strict=True))
    if parts and not (ordered and [*starts, raw["model"]["num_hidden_layers"]] == [0, *stops]):
        raise TypeError("parts must hold every layer once, in order")
    if any(name not in raw["files"] for part in parts for name in (part.graph, part.engine)):
        raise TypeError("parts must be among the files")
    return parts


def _part(raw: Mapping[str, Any]) -> EnginePart:
    start, stop = _tuple(raw, "layers", int)
    graph, engine = (_plain_name(_typed(raw, key, str)) for key in ("graph", "engine"))
    return EnginePart((start, stop), graph, engine, _tuple(raw, "inputs", dict), _tuple(raw, "outputs", dict))


def verify_files(engine: Path) -> Manifest:
    """Check every file of an engine against its manifest.

    Raises:
        CheckFailed: a file is missing, has another size, or another digest; all such files are named.
        InputError: as `load_manifest`.
    """
    manifest = load_manifest(engine)
    faults = {name: _size_fault(engine / name, record.bytes) for name, record in manifest.files.items()}
    with FileReader([engine / name for name, fault in faults.items() if fault is None]) as reader:
        for name, record in reader.records().items():
            if record != manifest.files[name]:
                faults[name] = f"{name} has been changed"
    if found := [fault for fault in faults.values() if fault]:
        raise CheckFailed(f"{engine}: {'; '.join(found)}; build or copy the engine again")
    return manifest


def _size_fault(path: Path, expected: int) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    return None if size == expected else f"{path.name} has {size} bytes, not {expected}"


def _typed(raw: Mapping[str, Any], key: str, kind: type) -> Any:
    value = raw[key]
    if not isinstance(value, kind):
        raise TypeError(f"{key} must be {kind.__name__}")
    return value


def _tuple(raw: Mapping[str, Any], key: str, kind: type) -> tuple[Any, ...]:
    values = _typed(raw, key, list)
    if not all(isinstance(value, kind) for value in values):
        raise TypeError(f"{key} must hold only {kind.__name__}")
    return tuple(values)


def _count(raw: Mapping[str, Any], key: str) -> int:
    value = raw[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{key} must be a count")
    return value


def _positive(raw: Mapping[str, Any], key: str) -> int:
    value = _count(raw, key)
    if value == 0:
        raise TypeError(f"{key} must be positive")
    return value


def _positive_or_null(raw: Mapping[str, Any], key: str) -> int | None:
    return None if raw[key] is None else _positive(raw, key)


def _one_of(raw: Mapping[str, Any], key: str, known: Collection[str]) -> str:
    value: str = _typed(raw, key, str)
    if value not in known:
        raise TypeError(f"{key} {value[:40]!r} is not one of {', '.join(known)}")
    return value


def _precision(raw: Mapping[str, Any]) -> dict[str, str]:
    floats = {key: _one_of(raw, key, DTYPES) for key in ("weights", "compute")}
    kv_cache = _one_of(raw, "kv_cache", (*DTYPES, *KV_DTYPES))
    activations = _one_of({"activations": floats["compute"], **raw}, "activations", (*DTYPES, "fp8"))
    return {**floats, "kv_cache": kv_cache, "activations": activations, "quant": _typed(raw, "quant", str)}


def _plain_name(name: str) -> str:
    """A file name inside the directory: nothing in a manifest leads outside of it."""
    if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
        raise TypeError(f"file name {name!r} leads outside the engine")
    return name
