"""The JSON Schema that other runtimes are written from says what the loader says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from l4export.engine.kv_cache import KV_LAYOUTS, KV_STORAGE
from l4export.engine.manifest import FORMAT_VERSION, Manifest
from l4export.engine.manifest_fields import MAX_INTEGER
from l4export.engine.manifest_reader import DTYPES
from l4export.errors import InputError
from manifests import KINDS, SCHEMA, planned_manifest, read
from workshop import ROOT, VARIANTS, Workshop

Planned = Callable[[str], dict[str, Any]]
Schema = dict[str, Any]


def alternatives(schema: Schema) -> Iterator[Schema]:
    """A schema without references: itself, and all that it is made of."""
    if reference := schema.get("$ref"):
        yield from alternatives(SCHEMA.schema["$defs"][reference.rpartition("/")[2]])
    for part in (*schema.get("anyOf", ()), *schema.get("allOf", ())):
        yield from alternatives(part)
    yield schema


def required(schema: Schema, value: Any, parent: Any = None) -> Iterator[tuple[dict[str, Any], str]]:
    """Objects within `value` and the names of the fields that they must have."""
    for part in alternatives(schema):
        if isinstance(value, dict):
            known = part.get("properties", {})
            if any("const" in rule and value.get(name) != rule["const"] for name, rule in known.items()):
                continue  # one of several kinds of an object, and this one is of another
            yield from ((value, name) for name in part.get("required", ()))
            for name, item in value.items():
                if isinstance(other := known.get(name, part.get("additionalProperties")), dict):
                    yield from required(other, item)
        elif isinstance(value, list) and value and "items" in part:
            yield from required(part["items"], value[0])


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA.schema)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_build_writes_is_valid(workshop: Workshop, variant: str, kind: str) -> None:
    options = {name: value for name, value in KINDS[kind].items() if name != "parts"}
    SCHEMA.validate(planned_manifest(workshop.checkpoint(variant), **options))


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_requires_the_loader_requires(planned: Planned, kind: str) -> None:
    raw = planned(kind)
    SCHEMA.validate(raw)
    fields = list(required(SCHEMA.schema, raw))
    for owner, name in fields:
        kept = dict(owner)
        del owner[name]
        with pytest.raises(InputError):
            read(json.dumps(raw))
        assert not SCHEMA.is_valid(raw)
        owner.clear()
        owner.update(kept)
    assert len(fields) > 60 and SCHEMA.is_valid(raw)


def test_it_tells_of_every_field_that_is_written(planned: Planned) -> None:
    """Whatever a build writes, but for the options and what has names of its own, is a required field."""
    raw = planned("tensorrt-parts")
    for owner, name in list(required(SCHEMA.schema, raw)):
        owner[f"told {name}"] = True
    chosen = [raw["options"], raw["source"], raw["files"], raw["graphs"]]
    untold = [name for value in objects(raw) if value not in chosen for name in value if f"told {name}" not in value]
    assert {name for name in untold if not name.startswith("told ")} <= {"tokens"}


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Of lists only the first entry, as `required` looks at."""
    if isinstance(value, dict):
        yield value
        for name, item in value.items():
            if name not in {"options", "source"}:
                yield from objects(item)
    elif isinstance(value, list) and value:
        yield from objects(value[0])


def test_it_knows_the_same_words_and_limits() -> None:
    schema = SCHEMA.schema
    cache, precision = (schema["properties"][name]["properties"] for name in ("kv_cache", "precision"))
    assert schema["properties"]["format_version"]["const"] == FORMAT_VERSION
    assert tuple(schema["$defs"]["dtype"]["enum"]) == DTYPES
    assert schema["$defs"]["positive"]["maximum"] == MAX_INTEGER
    assert tuple(cache["layout"]["enum"]) == KV_LAYOUTS
    assert set(precision["kv_cache"]["enum"]) == set(KV_STORAGE)


def test_the_page_names_every_field() -> None:
    """docs/reference/manifest.md, field by field."""
    page = (ROOT / "docs/reference/manifest.md").read_text(encoding="utf-8")
    fields = {name for part in every(SCHEMA.schema) for name in part.get("properties", {})}
    assert len(fields) > 60
    assert fields - set(re.findall(r"`([a-z0-9_]+)`", page)) == set()


def every(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in a JSON value."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from every(item)


def test_a_manifest_is_the_same_whenever_it_is_written(planned: Planned) -> None:
    text = json.dumps(planned("tensorrt-parts"))
    manifest: Manifest = read(text)
    assert manifest.to_json() == read(manifest.to_json()).to_json() == read(text).to_json()
