"""What `import l4export` offers, and that it costs nothing until it is used."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import l4export
from l4export.errors import InputError
from workshop import ROOT, Workshop

FUNCTIONS = ("bench", "build", "check_layers", "check_parity", "inspect", "load", "measure_quality", "plan")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_it_loads_nothing_heavy() -> None:
    """Nor does asking what there is, as help and completion do."""
    loaded = set(run("import sys, l4export; dir(l4export); print(*sys.modules)").split())
    assert not {"numpy", "onnx", "onnx_ir", "onnxruntime", "click", "rich", "numba", "torch", "ml_dtypes"} & loaded
    assert {name for name in loaded if name.startswith("l4export")} == {"l4export", "l4export._version"}


def test_everything_it_names_is_there() -> None:
    assert set(l4export.__all__) == {"BuildOptions", "Sampling", "__version__", *FUNCTIONS}
    assert set(l4export.__all__) <= set(dir(l4export))
    for name in FUNCTIONS:
        assert callable(getattr(l4export, name)) and getattr(l4export, name).__name__ == name
    scope: dict[str, object] = {}
    exec("from l4export import *", scope)
    assert set(l4export.__all__) <= set(scope)


def test_names_for_type_checkers_are_those_that_are_imported() -> None:
    """One list is for editors and mypy, the other for Python; both say where each name lives."""
    text = (ROOT / "l4export" / "__init__.py").read_text(encoding="utf-8")
    typed = {
        name: home
        for home, names in re.findall(r"    from l4export\.([\w.]+) import ([\w, ]+)", text)
        for name in names.split(", ")
    }
    assert typed == dict(re.findall(r'"(\w+)": "([\w.]+)"', text))


def test_no_module_has_the_name_of_a_function() -> None:
    """Importing it would put the module where the function was."""
    assert not {module.name for module in pkgutil.iter_modules(l4export.__path__)} & set(l4export.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'l4export' has no attribute 'export'"):
        l4export.export  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'export'"):
        exec("from l4export import export")


def test_paths_may_be_strings(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint, engine, ids = str(workshop.checkpoint("scout")), str(tmp_path / "engine"), str(tmp_path / "ids.json")
    Path(ids).write_text(json.dumps(list(range(200))))
    assert l4export.plan(checkpoint).needs
    assert l4export.build(checkpoint, engine).target == "ort-cpu"
    assert l4export.inspect(checkpoint).path == checkpoint
    assert l4export.inspect(engine).path == engine
    assert len(list(l4export.load(engine).generate([1, 2, 3], max_new_tokens=2))) == 2
    assert l4export.check_parity(engine, checkpoint, prefill=20, decode=2).passed
    assert l4export.check_layers(engine, checkpoint, prefill=20, decode=2).passed
    assert l4export.measure_quality(engine, checkpoint, ids, breakdown=False).kl.value < 1e-6
    assert l4export.bench(engine, prefill=8, decode=2, repeats=1, threads=1).decode_tokens_per_second > 0


@pytest.mark.parametrize(
    ("device", "words"), [("a100", "'a100' is not one of h100"), (0, "at least one byte"), (-5, "at least one byte")]
)
def test_devices_that_are_none(workshop: Workshop, device: str | int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        l4export.plan(workshop.checkpoint("scout"), device=device)


def test_a_plan_says_whether_anything_fits(workshop: Workshop) -> None:
    """Without a device, nothing can be too large."""
    checkpoint = workshop.checkpoint("guard")
    assert l4export.plan(checkpoint, device="h100").device_bytes == 80 * 10**9
    anywhere = l4export.plan(checkpoint)
    assert anywhere.fits and anywhere.choice is None
    memory = min(need.total for need in anywhere.needs) - 1
    tight = l4export.plan(checkpoint, device=memory, context=anywhere.config.max_position_embeddings)
    assert tight.choice is not None and not tight.fits
    assert l4export.plan(checkpoint, device=memory, context=tight.choice.max_context).fits
