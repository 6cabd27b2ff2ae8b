"""TensorRT's messages."""

from __future__ import annotations

from typing import Any

__all__ = ["new_logger"]


def new_logger(trt: Any) -> Any:
    """A logger of the module `trt` that keeps errors, in its list `errors`, and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                self.errors.append(message)

    return Logger()
