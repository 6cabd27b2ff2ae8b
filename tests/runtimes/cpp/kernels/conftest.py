"""Each instruction set that libl4cpu has kernels for; those that this processor lacks are skipped."""

from __future__ import annotations

import pytest
from cpu_kernel_library import INSTRUCTION_SETS, instruction_sets


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name not in instruction_sets():
        pytest.skip(f"this processor has no {name}")
    return name
