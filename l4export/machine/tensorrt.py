"""TensorRT on this machine: which package a target needs, and whether it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from l4export.errors import EnvironmentLacks

__all__ = ["MODULES", "check_package", "check_version"]

MODULES: Mapping[str, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""Target -> the Python module that compiles for it. The two have one interface, except for compute capabilities."""

_TYPED_SINCE = 11
_INSTALL = {
    "tensorrt-rtx": "pip install 'l4export[tensorrt-rtx]'",
    "tensorrt": f"install TensorRT {_TYPED_SINCE} from NVIDIA",
}


def check_package(target: str) -> None:
    """Check that TensorRT is installed.

    Raises:
        EnvironmentLacks: it is not; the message says what to install.
    """
    if importlib.util.find_spec(MODULES[target]) is None:
        raise EnvironmentLacks(f"--target {target} needs the Python package {MODULES[target]}: {_INSTALL[target]}")


def check_version(trt: Any) -> None:
    """Check that a loaded module keeps a graph's types: TensorRT before 11 chooses types by itself.

    Raises:
        EnvironmentLacks: an older TensorRT.
    """
    if trt.__name__ == "tensorrt" and int(trt.__version__.partition(".")[0]) < _TYPED_SINCE:
        raise EnvironmentLacks(f"tensorrt {trt.__version__} is older than {_TYPED_SINCE}: {_INSTALL['tensorrt']}")
