"""How the kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

from l4export.errors import EnvironmentLacks

__all__ = ["check_compiled", "jit"]


def jit(function: Callable[..., Any], signature: Any = None) -> Any:
    """The function, compiled by Numba without the GIL; for one signature, or for each that it is called with."""
    try:
        return numba.njit(signature, nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # nowhere to keep a cache: compile in each process
        return numba.njit(signature, nogil=True, error_model="numpy")(function)


def check_compiled() -> None:
    """Check, before a kernel is called, that `jit` compiles.

    Raises:
        EnvironmentLacks: `NUMBA_DISABLE_JIT` is set. Interpreted, some kernels cannot run and the others take days.
    """
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]  # set when it is imported
        raise EnvironmentLacks("NUMBA_DISABLE_JIT is set, and only compiled code quantises weights: unset it")
