"""Every field of real manifests, deleted or replaced: the manifest is refused in one line, or read as it then is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from manifest_changes import at, changed, places

from l4export.errors import InputError
from manifests import KINDS, SCHEMA, read

FREE = re.compile(
    r"""generator | target | passes(\.\d+)? | source(\.config\.json)? | graphs\.decoder\.runtime\.(name|provider)
    | graphs\.\w+\.runtime\.min_version
    | graphs\.check(\.(start|rounded|(operators|calls)(\.\d+)?|inputs\.\d+\.optional))?
    | graphs\.portable | graphs\.decoder\.needs
    | graphs\.decoder\.inputs\.\d+\.optional | graphs\.decoder\.parts\.\d+\.inputs\.\d+
    | model\.(use_qk_norm|attn_temperature_tuning|tie_word_embeddings|attn_scale|floor_scale|rms_norm_eps|rope_theta)
    | model\.(bos|pad)_token_id | model\.(eos_token_ids|moe_layers|rope_layers)(\.\d+)? | model\.rope_scaling(\.\w+)?
    | options(\.(?!policy\b).*)? | options\.policy\.rules\.\d\.(?!kind).* | options\.policy\.accuracy_level
    """,
    re.VERBOSE,
)
"""What can be anything of its type without a contradiction: where the engine comes from, what its graphs compute, and
what only they know, such as whether an input has a default, or how long the calls of a check are."""


@pytest.mark.parametrize("kind", ["static", "concat", "kv-int4", "cuda", "tensorrt-parts"])
def test_a_changed_field_is_refused_or_free(planned: Callable[[str], dict[str, Any]], kind: str) -> None:
    raw = planned(kind)
    refused = 0
    for place in places(raw):
        if kind != "static" and place[0] not in {"precision", "kv_cache", "prefill", "graphs"}:  # in each the same
            continue
        dotted = ".".join(map(str, place))
        for text in changed(raw, place):
            try:
                manifest = read(text)
            except InputError as error:
                message = str(error)
                assert re.fullmatch(r"m/manifest\.json: .{1,250}; (build the engine again|upgrade l4export)", message)
                refused += 1
            else:
                assert json.loads(manifest.to_json()) == json.loads(text), dotted
                assert FREE.fullmatch(dotted), text
                assert SCHEMA.is_valid(json.loads(text)), text
    assert refused > 500


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_are_ignored_wherever_they_are(planned: Callable[[str], dict[str, Any]], kind: str) -> None:
    """Later versions may add some without changing the format's number."""
    raw = planned(kind)
    before = read(json.dumps(raw))
    found = [(), *(place for place in places(raw) if isinstance(at(raw, place), dict))]
    for place in found:
        chosen = place in {("graphs",), ("files",), ("source",)} or (len(place) == 4 and place[2] == "profiles")
        if not chosen and place[:1] != ("options",):  # where names are somebody's choice none is unknown
            at(raw, place)["added_later"] = {"a": [1, None]}
    assert len(found) > 20
    assert read(json.dumps(raw)) == before
