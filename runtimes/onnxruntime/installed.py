"""The ONNX Runtime that is installed, and whether it is new enough."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from l4export.engine.manifest import Graph
from l4export.errors import EnvironmentLacks

__all__ = ["installed_onnxruntime", "require_version"]


def installed_onnxruntime() -> Any:
    """The module `onnxruntime`.

    Raises:
        EnvironmentLacks: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentLacks("running an engine needs onnxruntime: pip install 'l4export[cpu]'") from error
    return onnxruntime


def require_version(engine: Path, graphs: Iterable[Graph]) -> None:
    """Check that what is installed is no older than the graphs of an engine need: it could compute something else.

    Raises:
        EnvironmentLacks: it is older, or there is none.
    """
    version = str(installed_onnxruntime().__version__)
    for graph in graphs:
        least = graph.runtime.min_version
        if least is not None and _numbers(version) < _numbers(least):
            raise EnvironmentLacks(
                f"{engine / graph.file}: needs ONNX Runtime {least} or later, and {version} is installed; "
                f"pip install --upgrade 'l4export[{graph.runtime.provider}]'"
            )


def _numbers(version: str) -> tuple[int, int]:
    """The first two numbers of a version, by which versions are older and newer; 0, 0 where it has none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
