"""Objects that can be closed, by hand or by `with`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

__all__ = ["Closing"]


class Closing:
    """Base of what is closed at the end of a `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Free what can be freed. To close it again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
