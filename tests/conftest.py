"""Fixtures that many tests share, made once per worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cpu_kernel_library import kernel_library_path

from l4export.checkpoint import sample
from l4export.checkpoint.sample import write_sample
from workshop import Workshop

torch.set_num_threads(1)  # tiny models: threads only wait for each other, and tests run side by side


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def cpu_kernels() -> Iterator[Path]:
    """libl4cpu of the working tree, which engines for the target `cpu` then find."""
    library = kernel_library_path()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("L4EXPORT_CPU_KERNELS", str(library))
        yield library


@pytest.fixture(scope="session")
def wide_scout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Scout whose experts are as wide as a block that QMoE takes on CUDA."""
    path = tmp_path_factory.mktemp("wide") / "scout"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sample._SHAPES["tiny"], "intermediate_size", 64)
        write_sample(path, "scout", "tiny", seed=5)
    return path
