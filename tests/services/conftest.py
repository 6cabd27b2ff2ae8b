"""Engines and services that these tests share: each is started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from l4export import runtimes
from l4export.runtimes.engine import Engine
from services import SERVERS, Service, calling_engine, kjv_engine, running, shapes_engine


@pytest.fixture(scope="session")
def engine_paths(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("services"), {}
    makers = {"kjv": kjv_engine, "calling": calling_engine, "shapes": shapes_engine}

    def path(name: str) -> Path:
        if name not in made:
            made[name] = makers[name](root)
        return made[name]

    return path


@pytest.fixture(scope="session")
def kjv(engine_paths: Callable[[str], Path]) -> Engine:
    return runtimes.load(engine_paths("kjv"), threads=1)


# the service in C++ is compiled first, which takes a minute
_EACH = [pytest.param(name, marks=pytest.mark.slow) if name == "cpp" else name for name in SERVERS]


@pytest.fixture(scope="session", params=_EACH)
def server(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def services(server: str, engine_paths: Callable[[str], Path]) -> Iterator[Callable[[str], Service]]:
    """The service of an engine, with default options."""
    with ExitStack() as stack:
        started: dict[str, Service] = {}

        def service(name: str) -> Service:
            if name not in started:
                started[name] = stack.enter_context(running(server, engine_paths(name)))
            return started[name]

        yield service


@pytest.fixture
def service(services: Callable[[str], Service]) -> Service:
    return services("kjv")
