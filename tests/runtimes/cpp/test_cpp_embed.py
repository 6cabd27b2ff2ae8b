"""examples/cpp_embed, built against an installed library by the commands of its page."""

from __future__ import annotations

from pathlib import Path

from example_pages import checkout, commands

import l4export
from l4export import Sampling
from native_library import ONNXRUNTIME, build_native, run
from workshop import ROOT


def test_it_says_what_python_says(tmp_path: Path) -> None:
    checkout(tmp_path, "examples")
    (tmp_path / "engines").mkdir()
    l4export.build(ROOT / "examples/kjv/model", tmp_path / "engines/kjv")
    headers, library, program = commands("cpp_embed")
    assert "onnxruntime_headers.sh" in headers and "--install" in library  # these are done already
    run("cmake", "--install", build_native(), "--prefix", tmp_path / "build/prefix")
    said = run("sh", "-ec", program, cwd=tmp_path, L4EXPORT_ONNXRUNTIME=str(ONNXRUNTIME))

    engine = l4export.load(tmp_path / "engines/kjv")
    ids, sampling = engine.text.encode("In the beginning"), Sampling(temperature=0.7, top_p=0.9, seed=1)
    expected = "".join(engine.generate(ids, max_new_tokens=60, sampling=sampling).text_pieces())
    assert said.endswith(f"\nIn the beginning{expected}\n")
