"""A written checkpoint, field by field, beside what llm-compressor writes of the same model: what loaders know.

`llmcompressor_record.json` says by which versions, and `write_llmcompressor_record.py` how it was made.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from checkpoint_summary import summary
from llmcompressor_models import write_models

from l4export.cli import main
from workshop import ROOT

RECORD: dict[str, Any] = json.loads((ROOT / "tests/support/llmcompressor_record.json").read_text())

TARGET = ("--target", "compressed-tensors", "--quant")
QUANT = {"W4A16": ("int4", "--block-size", "32"), "W8A16": ("int8", "--block-size", "32"), "FP8_DYNAMIC": ("fp8",)}

NOT_THERE = {
    "scale_dtype": "loaders with a compressed-tensors older than the field refuse it, and null is what it is without",
    "zp_dtype": "the same; there are no zero points",
}
OTHER = {
    "version": "of the library whose fields they are",
    "ignore": "patterns instead of a name for each module; that they are the same modules is tested below",
}
OTHER_OF_WEIGHTS = {
    "observer": "how scales were found, which no loader asks; this is what released checkpoints say",
    "actorder": "null, where GPTQ there says 'static': the order in which columns were rounded, which shows nowhere",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=[name for name in RECORD if name != "versions"])
def both(request: pytest.FixtureRequest, models: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours and theirs, of one model in one scheme."""
    model, scheme = request.param.rsplit("-", 1)
    out = models / request.param
    with pytest.raises(SystemExit) as ended:
        main([*map(str, ("build", models / model, "-o", out)), *TARGET, *QUANT[scheme]])
    assert not ended.value.code
    return summary(out, models / model), RECORD[request.param]


def test_tensors_have_the_same_names_dtypes_and_shapes(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    ours, theirs = both
    assert ours["tensors"] == theirs["tensors"]


def test_config_json_is_otherwise_the_sources(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for side in both:
        assert side["changed"] == {} and side["removed"] == []


def test_what_it_says_of_quantisation(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    ours, theirs = (dict(side["quantization_config"]) for side in both)
    for name in OTHER:
        assert ours.pop(name) and theirs.pop(name)
    (our_group,), (their_group,) = (side.pop("config_groups").values() for side in (ours, theirs))
    assert ours == theirs
    for name in ("weights", "input_activations"):
        our_numbers, their_numbers = our_group.pop(name), their_group.pop(name)
        if their_numbers is None:
            assert our_numbers is None
            continue
        assert all(their_numbers.pop(absent) is None for absent in NOT_THERE) and not NOT_THERE.keys() & our_numbers
        for other in OTHER_OF_WEIGHTS if name == "weights" else ():
            del our_numbers[other], their_numbers[other]
        assert our_numbers == their_numbers
    assert our_group == their_group


def test_the_same_modules_are_left_alone(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """As loaders match them: from the beginning of a name, every module with a matrix."""
    ours, theirs = both
    patterns = [re.compile(pattern.removeprefix("re:")) for pattern in ours["quantization_config"]["ignore"]]
    modules = {name.rpartition(".weight")[0] for name in _spelled(theirs["tensors"]) if re.search(r"\.weight", name)}
    left = {name for name in modules if any(pattern.match(name) for pattern in patterns)}
    named = set(_spelled(theirs["quantization_config"]["ignore"]))
    assert named <= left
    quantised = {name.rpartition(".")[0] for name in _spelled(theirs["tensors"]) if name.endswith("weight_scale")}
    assert quantised and not quantised & left


def _spelled(names: Any) -> list[str]:
    """Collapsed names, one by one."""
    found: list[str] = []
    for name in names:
        if match := re.search(r"\{([\d,]+)\}", name):
            found += _spelled(name.replace(match[0], number, 1) for number in match[1].split(","))
        else:
            found.append(name)
    return found
