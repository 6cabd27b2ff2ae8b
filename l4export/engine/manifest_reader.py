"""From the JSON of a manifest to its values. It is untrusted: every field is taken by type, the rest is ignored."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from l4export.engine.kv_cache import KV_DTYPES, KV_LAYOUTS, KVStorage
from l4export.engine.manifest_fields import Fields
from l4export.engine.manifest_types import (
    CHECK,
    CPU_KERNELS,
    FORMAT,
    FORMAT_VERSION,
    PACKED_WEIGHTS,
    VISION,
    CheckGraph,
    DeviceNeeds,
    EnginePart,
    Graph,
    InputSpec,
    KVLayer,
    Manifest,
    PackedWeight,
    Runtime,
    TensorSpec,
)
from l4export.engine.profiles import TokenRange
from l4export.engine.weight_layout import MIXED_GEMM_SM80
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.model.config_fields import show
from l4export.model.vision_config import VisionConfig
from l4export.storage.file_records import FileRecord

__all__ = ["FEATURES", "read_manifest", "read_model", "read_options", "read_record", "read_vision"]

FEATURES: frozenset[str] = frozenset({CPU_KERNELS, PACKED_WEIGHTS, VISION})
"""What `requires` may name: features that came after format version 3 began."""

DTYPES = ("float32", "float16", "bfloat16", "int64", "int8", "uint8")
_FLOATS = ("fp32", "fp16", "bf16")
_KV_KINDS = ("chunked", "full")
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_manifest(raw: Mapping[str, Any], where: str) -> Manifest:
    """The manifest that a JSON object holds; whether its fields agree with each other is not looked at.

    Raises:
        InputError: another format, a feature that this version does not know, a field missing or of a wrong type; it
            names the file `where` and the field.
    """
    _check_format(raw, where)
    fields = Fields(raw, "", where)
    kv_cache, prefill, requires = fields.child("kv_cache"), fields.child("prefill"), _requires(fields)
    packed = fields.children(PACKED_WEIGHTS) if PACKED_WEIGHTS in requires else []
    return Manifest(
        requires=requires,
        generator=fields.text("generator"),
        target=fields.text("target"),
        model=read_model(fields),
        precision=_precision(fields.child("precision")),
        max_context=fields.count("max_context"),
        kv_layout=kv_cache.choice("layout", KV_LAYOUTS),
        kv_storage=_kv_storage(kv_cache.child("storage")),
        kv_layers=tuple(map(_kv_layer, kv_cache.children("layers"))),
        prefill_max_tokens=prefill.count("max_tokens_per_call"),
        prefill_cut=prefill.count_or_null("cut_at_multiples_of"),
        graphs={
            name: _check(graph) if name == CHECK else _graph(graph)
            for name, graph in fields.child("graphs").named().items()
        },
        passes=fields.texts("passes"),
        options=read_options(fields, ("weights", "decoder")),
        source={name: read_record(record) for name, record in fields.child("source").files().items()},
        files={name: read_record(record) for name, record in fields.child("files").files().items()},
        packed_weights=tuple(map(_packed_weight, packed)),
        vision=read_vision(fields),
    )


def _check_format(raw: Mapping[str, Any], where: str) -> None:
    if raw.get("format") != FORMAT:
        raise InputError(f"{where}: not an l4export manifest; build the engine again")
    version = raw.get("format_version")
    if type(version) is not int or version < 1:
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


def _requires(fields: Fields) -> tuple[str, ...]:
    names = fields.texts("requires")
    for name in names:
        if name not in FEATURES:
            raise InputError(f"{fields.where}: requires {name!r}, which this l4export does not know; upgrade l4export")
    return names


def read_model(fields: Fields) -> ModelConfig:
    """The text model that a manifest is about. Raises `InputError`."""
    model = fields.child("model")
    try:
        return ModelConfig.from_dict(model.raw, f"{fields.where}: model")
    except InputError as error:
        raise InputError(f"{error}; {fields.remedy}") from error


def read_vision(fields: Fields) -> VisionConfig | None:
    """Its vision tower, if it has one. Raises `InputError`."""
    if VISION not in fields.raw:
        return None
    vision = fields.child(VISION)
    try:
        return VisionConfig.from_dict(vision.raw, f"{fields.where}: {VISION}")
    except InputError as error:
        raise InputError(f"{error}; {fields.remedy}") from error


def _precision(fields: Fields) -> dict[str, str]:
    tower = {VISION: fields.choice(VISION, _FLOATS)} if VISION in fields.raw else {}
    return {
        "weights": fields.choice("weights", _FLOATS),
        "compute": fields.choice("compute", _FLOATS),
        "kv_cache": fields.choice("kv_cache", dict.fromkeys([*_FLOATS, *KV_DTYPES])),
        "activations": fields.choice("activations", (*_FLOATS, "fp8")),
        "quant": fields.text("quant"),
        **tower,
    }


def _kv_storage(fields: Fields) -> KVStorage:
    return KVStorage(fields.choice("dtype", DTYPES), fields.count("channels_per_element"))


def _kv_layer(fields: Fields) -> KVLayer:
    return KVLayer(fields.choice("kind", _KV_KINDS), fields.count_or_null("capacity"))


def _graph(fields: Fields) -> Graph:
    return Graph(
        file=fields.file("file"),
        runtime=_runtime(fields.child("runtime")),
        inputs=tuple(map(_input, fields.children("inputs"))),
        outputs=tuple(map(_tensor, fields.children("outputs"))),
        profiles=tuple(map(_profile, fields.children("profiles"))),
        parts=tuple(map(_part, fields.children("parts"))),
        needs=None if fields.value("needs") is None else _needs(fields.child("needs")),
    )


def _runtime(fields: Fields) -> Runtime:
    least = _version(fields, "min_version") if "min_version" in fields.raw else None
    return Runtime(fields.text("name"), fields.text("provider"), least)


def _check(fields: Fields) -> CheckGraph:
    return CheckGraph(
        **vars(_graph(fields)),
        layers=fields.counts("layers", 0),
        operators=fields.texts("operators"),
        start=fields.count("start", 0),
        calls=fields.counts("calls", 1),
        record=fields.file("record"),
        rounded=fields.flag("rounded"),
    )


def _needs(fields: Fields) -> DeviceNeeds:
    return DeviceNeeds(_version(fields, "compute_capability"), _version(fields, "cuda"))


def _version(fields: Fields, name: str) -> str:
    text = fields.text(name)
    if not _VERSION.fullmatch(text):
        raise fields.refuse(name, f"is {text!r}; expected a version such as 7.5")
    return text


def _tensor(fields: Fields) -> TensorSpec:
    return TensorSpec(fields.text("name"), fields.choice("dtype", DTYPES), fields.shape("shape"))


def _input(fields: Fields) -> InputSpec:
    return InputSpec(
        fields.text("name"), fields.choice("dtype", DTYPES), fields.shape("shape"), fields.flag("optional")
    )


def _profile(fields: Fields) -> dict[str, TokenRange]:
    found = {}
    for quantity, limits in fields.named().items():
        least, likeliest, most = limits.count("min"), limits.count("opt"), limits.count("max")
        if not least <= likeliest <= most:
            raise fields.refuse(quantity, "has not min <= opt <= max")
        found[quantity] = least, likeliest, most
    return found


def _part(fields: Fields) -> EnginePart:
    layers = fields.counts("layers", 0)
    if len(layers) != 2:
        raise fields.refuse("layers", "is not [first, behind the last]")
    return EnginePart(
        layers=layers,
        graph=fields.file("graph"),
        engine=fields.file("engine"),
        inputs=tuple(map(_input, fields.children("inputs"))),
        outputs=tuple(map(_tensor, fields.children("outputs"))),
    )


def _packed_weight(fields: Fields) -> PackedWeight:
    if fields.value("bits") not in (4, 8):
        raise fields.refuse("bits", f"is {show(fields.value('bits'))}; expected 4 or 8")
    return PackedWeight(
        name=fields.text("name"),
        layout=fields.choice("layout", (MIXED_GEMM_SM80,)),
        bits=fields.count("bits"),
        file=fields.file("file"),
        offset=fields.count("offset", 0),
        shape=fields.counts("shape", 1),
    )


def read_options(fields: Fields, names: Sequence[str]) -> dict[str, Any]:
    """The options of a build: groups of these names, free but for what JSON cannot hold, such as half a surrogate pair.

    Raises:
        InputError: a group is missing, or holds a number such as 1e400.
    """
    groups = fields.child("options")
    options = {**groups.raw, **{name: dict(groups.child(name).raw) for name in names}}
    try:
        json.dumps(options, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise fields.refuse("options", "holds what is no JSON") from error
    return options


def read_record(fields: Fields) -> FileRecord:
    """Size and digest of a file. Raises `InputError`."""
    record = FileRecord(fields.count("bytes", 0), fields.text("sha256"))
    if not _SHA256.fullmatch(record.sha256):
        raise fields.refuse("sha256", "is not 64 hexadecimal digits")
    return record
