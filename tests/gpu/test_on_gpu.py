"""On a GPU, by `make test-gpu`: numbers, memory and speed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpu_checks import (
    QUANTS,
    VARIANTS,
    Row,
    image_row,
    missing_gpu,
    parity_row,
    sparse_engine,
    speed_row,
    tower_engine,
    tower_row,
    transformers_row,
)
from l4export import runtimes

pytestmark = pytest.mark.gpu

LAYERS = 8
SHARE = 0.60
"""Of the bandwidth of a copy on the GPU: what decoding is to reach."""
Record = Callable[[Row], None]


@pytest.mark.parametrize("layout", ["chunked", "static"])
@pytest.mark.parametrize("weights", QUANTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_parity(tmp_path: Path, record: Record, variant: str, weights: str, layout: str) -> None:
    """A prompt and 200 steps against PyTorch; loading has compared the composition with a CPU's before."""
    pytest.importorskip("torch")
    row = parity_row(tmp_path, variant, weights, layout, None)
    record(row)
    assert row["passed"], row["failures"]
    assert "steps by CUDA graph" in row["executed on"]


@pytest.mark.parametrize("vision_dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("variant", ["scout", "maverick", "guard"])
def test_parity_of_images(tmp_path: Path, record: Record, variant: str, vision_dtype: str) -> None:
    """Pixels, features and logits; loading the tower has compared all of it with this machine's CPU before."""
    pytest.importorskip("torch")
    row = image_row(tmp_path, variant, vision_dtype, None)
    record(row)
    assert row["passed"], row["failures"]
    assert "CUDAExecutionProvider on" in row["executed on"]


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The first layers of Scout at full size: 11 GB."""
    if missing := missing_gpu():
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("full")
    yield sparse_engine(folder, "full", LAYERS, 16384)
    shutil.rmtree(folder)


@pytest.mark.parametrize(("prefill", "decode"), [(512, 64), (8192, 64)])
def test_memory_and_speed_at_full_size(full_size: Path, record: Record, prefill: int, decode: int) -> None:
    row = speed_row(full_size, prefill, decode)
    record(row)
    assert row["gpu"]["used_bytes"] <= row["formula_bytes"] <= 1.05 * row["gpu"]["used_bytes"]
    assert row["gpu"]["steps"] == "steps by CUDA graph"


@pytest.mark.xfail(strict=True, reason="0.26 on an H200, by its kernels: docs/guide/gpus.md")
def test_decoding_reaches_its_share_of_the_bandwidth(full_size: Path) -> None:
    assert speed_row(full_size, 512, 64)["gpu"]["decode_bandwidth_share"] >= SHARE


def test_rows_decode_together_at_full_size(full_size: Path) -> None:
    """Rows at other positions, on one recording."""
    session = runtimes.load(full_size).session(batch=4, capacity=600)
    session.append([[1] * 500, [2] * 3, [3] * 40, [4]], last_only=True)
    for _ in range(3):
        assert session.append([[5], [6], [7], [8]]).shape[:2] == (4, 1)
    assert session.lengths.tolist() == [503, 6, 43, 4]


def test_the_whole_tower(tmp_path: Path, record: Record) -> None:
    engine = tower_engine(tmp_path, "full", 4096)
    for tiles in (1, 5, 17):
        record(tower_row(engine, tiles))
    shutil.rmtree(engine)


def test_transformers_on_the_same_card(full_size: Path, record: Record) -> None:
    """For the table alone."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    record(transformers_row(full_size.parent / "scout", LAYERS, 512, 16))
