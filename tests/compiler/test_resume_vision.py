"""A build of several graphs that was cut short goes on, in the middle of either."""

from __future__ import annotations

from pathlib import Path

import pytest

from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.directory import OutputDirectory
from l4export.compiler.options import BuildOptions
from l4export.weights import placement


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_it_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(placement, "_UNIT_BYTES", 20_000)
    write_sample(tmp_path / "c", "guard", "tiny", seed=0, vision=True)
    options, told = BuildOptions(max_context=64, jobs=1), list[str]()
    build(tmp_path / "c", tmp_path / "whole", options)

    def stop(done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "c", tmp_path / "e", options, stop)
    build(tmp_path / "c", tmp_path / "e", options, on_notice=told.append)
    assert any(line.startswith("resuming: ") for line in told)
    assert contents(tmp_path / "e") == contents(tmp_path / "whole")


def test_one_that_was_stopped_behind_its_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of an engine that sees images is known as one that a build has written."""
    write_sample(tmp_path / "c", "guard", "tiny", seed=0, vision=True)
    options = BuildOptions(max_context=64, jobs=1)
    build(tmp_path / "c", tmp_path / "whole", options)

    def stop(self: OutputDirectory, manifest: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OutputDirectory, "finish", stop)
        build(tmp_path / "c", tmp_path / "e", options)
    build(tmp_path / "c", tmp_path / "e", options)
    assert contents(tmp_path / "e") == contents(tmp_path / "whole")
