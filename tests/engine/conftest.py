from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from manifests import KINDS, planned_manifest
from workshop import Workshop


@pytest.fixture(scope="session")
def planned(workshop: Workshop) -> Callable[[str], dict[str, Any]]:
    """A manifest's JSON of one of `KINDS`, a fresh copy each time."""
    made: dict[str, dict[str, Any]] = {}

    def make(kind: str) -> dict[str, Any]:
        if kind not in made:
            made[kind] = planned_manifest(workshop.checkpoint("scout"), **KINDS[kind])
        return copy.deepcopy(made[kind])

    return make
