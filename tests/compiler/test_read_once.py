"""A checkpoint larger than memory comes from the disk once, though it is hashed and converted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from l4export.checkpoint.sample import write_sample
from l4export.engine.manifest import load_manifest
from l4export.storage.file_records import file_record
from small_memory import DiskUse, disk_use

LIMIT = 1 << 30
"""Bytes of memory, a quarter of the checkpoint. About 300 MB are the process; what two workers have fetched and not yet
used, and what they have written and not yet hashed, is as much again; the kernel keeps half for pages used twice."""

PROGRAM = """if True:
    import sys
    from l4export.cli import main
    from l4export.weights import placement
    placement._FILE_BYTES = 128 << 20  # in proportion to the model, as 4 GiB are to one of 200 GB
    main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_build_in_little_memory_reads_the_checkpoint_once(tmp_path: Path, jobs: int) -> None:
    """Within a tenth: weights of attention lie before all experts in the engine, so they are hashed last and read back
    (3 % of the checkpoint). Two passes over the source would read twice as much."""
    write_sample(tmp_path / "ck", "scout", "bench", seed=0)
    files = sorted((tmp_path / "ck").glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    assert size > 3.5 * LIMIT
    words = ["build", tmp_path / "ck", "-o", tmp_path / "e", "--quant", "int4", "--memory-budget", "128MB"]
    used = disk_use([sys.executable, "-c", PROGRAM, *words, "--jobs", jobs], LIMIT, files, tmp_path / "record")
    assert used.exit_code == 0
    assert 0.95 * size < used.read < 1.1 * size, used  # a few pages may have stayed in the cache
    source = load_manifest(tmp_path / "e").source
    assert {file.name: file_record(file) for file in files} == {file.name: source[file.name] for file in files}


def test_the_measurement_sees_what_is_read_twice(tmp_path: Path) -> None:
    """By a process that reads a file twice, in memory that does not hold it; a file that is dropped is read at all."""
    (tmp_path / "f").write_bytes(b"x" * (192 << 20))
    program = """if True:
        import sys
        for _ in range(int(sys.argv[2])):
            with open(sys.argv[1], "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass
    """
    found: list[DiskUse] = [
        disk_use(
            [sys.executable, "-c", program, tmp_path / "f", times], 64 << 20, [tmp_path / "f"], tmp_path / "record"
        )
        for times in (1, 2)
    ]
    assert all(used.exit_code == 0 for used in found)
    if found[0].read == 0:
        pytest.skip("the file system here has no disk")
    assert found[0].read >= 192 << 20
    if found[1].limited:
        assert found[1].read > 1.9 * (192 << 20)
