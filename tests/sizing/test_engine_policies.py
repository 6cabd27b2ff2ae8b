"""What `plan` says of quantised checkpoints is what `build` writes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.quantization.policy import standard_policy
from l4export.sizing.memory_plan import plan
from quantised_checkpoints import Linears, quantised
from workshop import Workshop

FORMS = {
    "int4": Linears(packed=True, bits=4, strategy="group"),
    "int8": Linears(packed=True, strategy="group"),
    "fp8": Linears(is_float=True),
}


@pytest.mark.parametrize(
    ("form", "quant", "dtype"),
    [
        ("int4", "none", "fp32"),
        ("int4", "none", "fp16"),
        ("int4", "int4", "fp32"),
        ("int4", "int8", "fp32"),
        ("int8", "none", "fp32"),
        ("int8", "int8", "fp32"),
        ("fp8", "none", "fp32"),
    ],
)
def test_sizes_are_those_of_the_files(workshop: Workshop, tmp_path: Path, form: str, quant: str, dtype: str) -> None:
    path, _ = quantised(workshop.checkpoint("scout"), tmp_path / "c", FORMS[form])
    options = BuildOptions(max_context=100, dtype=dtype, policy=standard_policy(quant))
    manifest = build(path, tmp_path / "e", options)
    written = sum(record.bytes for name, record in manifest.files.items() if name.endswith(".data"))
    planned = plan(path, context=100)
    need = next(
        need
        for need in planned.needs
        if (need.combination.quant, need.combination.dtype) == (quant, dtype)
        and (need.combination.kv_layout, need.combination.kv_dtype) == ("static", dtype)
    )
    assert need.weights == written
    assert planned.keeps_codes == (form != "int8")


def test_what_is_said(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = quantised(workshop.checkpoint("scout"), tmp_path / "c", FORMS["int4"])
    for place, note in (
        (path, "20 weights in INT4, groups of 32: codes and scales are kept"),
        (path / "config.json", "config.json names a quantisation ('compressed-tensors'), and no weights are there"),
    ):
        with pytest.raises(SystemExit):
            main(["plan", str(place), "--context", "100"])
        said = capsys.readouterr().out
        assert note in said and ("kept, fp32" in said) == (place == path)
    with pytest.raises(SystemExit):
        main(["plan", str(path), "--context", "100", "--json"])
    assert json.loads(capsys.readouterr().out)["notes"][0].startswith("20 weights in INT4")
    assert plan(workshop.checkpoint("scout"), context=100).notes == ()
