"""Typed access to the fields of a manifest, which is untrusted: every refusal is one line, with field and cure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from l4export.errors import InputError
from l4export.model.config_fields import show

__all__ = ["MAX_INTEGER", "Fields", "refusal"]

MAX_INTEGER = 2**53 - 1
"""What every JSON reader reads exactly [RFC 7493, section 2.2]."""

_MAX_TEXT = 1000


_REMEDY = "build the engine again"


def refusal(where: str, path: str, problem: str, remedy: str = _REMEDY) -> InputError:
    """The error, to be raised: which file, which field, what is wrong with it, what to do."""
    return InputError(f"{where}: {path} {problem}; {remedy}")


class Fields:
    """The fields of one JSON object of a manifest; all that are asked for must be there, others are ignored.

    Args:
        raw: The object.
        path: Its place in the manifest, such as `graphs.decoder`; empty for the manifest itself.
        where: The manifest's file.
        remedy: What to do about a field that is wrong.
    """

    def __init__(self, raw: object, path: str, where: str, remedy: str = _REMEDY) -> None:
        self.path, self.where, self.remedy = path, where, remedy
        if not isinstance(raw, Mapping):
            raise refusal(where, path, f"is {show(raw)}; expected an object", remedy)
        self.raw = raw

    def at(self, name: str) -> str:
        """The place of a field in the manifest."""
        return f"{self.path}.{name}" if self.path else name

    def refuse(self, name: str, problem: str) -> InputError:
        """The error, to be raised, about a field."""
        return refusal(self.where, self.at(name), problem, self.remedy)

    def value(self, name: str) -> Any:
        """A field as it is."""
        if name not in self.raw:
            raise self.refuse(name, "is missing")
        return self.raw[name]

    def text(self, name: str) -> str:
        """A field of text."""
        return self._text(name, self.value(name))

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that lists texts."""
        return tuple(self._text(f"{name}[{index}]", item) for index, item in enumerate(self._array(name)))

    def choice(self, name: str, known: Collection[str]) -> str:
        """A field of one of the texts in `known`."""
        value = self.text(name)
        if value not in known:
            raise self.refuse(name, f"is {show(value)}, which is not one of {', '.join(known)}")
        return value

    def flag(self, name: str) -> bool:
        """A field that is true or false."""
        value = self.value(name)
        if not isinstance(value, bool):
            raise self.refuse(name, f"is {show(value)}; expected true or false")
        return value

    def count(self, name: str, least: int = 1) -> int:
        """A field that is an integer of `least` or more."""
        return self._count(name, self.value(name), least)

    def count_or_null(self, name: str) -> int | None:
        """A field that is a positive integer, or null."""
        return None if self.value(name) is None else self.count(name)

    def counts(self, name: str, least: int) -> tuple[int, ...]:
        """A field that lists integers of `least` or more."""
        return tuple(self._count(f"{name}[{index}]", item, least) for index, item in enumerate(self._array(name)))

    def shape(self, name: str) -> tuple[int | str, ...]:
        """A field that lists positive integers and names of sizes."""
        return tuple(
            item
            if isinstance(item, str) and item.isascii() and item.isidentifier()
            else self._count(f"{name}[{index}]", item, 1)
            for index, item in enumerate(self._array(name))
        )

    def file(self, name: str) -> str:
        """A field that names a file inside the directory."""
        return self._file(name, self.text(name))

    def child(self, name: str) -> Fields:
        """A field that is an object."""
        return Fields(self.value(name), self.at(name), self.where, self.remedy)

    def children(self, name: str) -> list[Fields]:
        """A field that lists objects."""
        items = enumerate(self._array(name))
        return [Fields(item, self.at(f"{name}[{index}]"), self.where, self.remedy) for index, item in items]

    def named(self) -> dict[str, Fields]:
        """The object's fields, whatever their names, each of which is an object."""
        return {self._text("a name", name): self.child(name) for name in self.raw}

    def files(self) -> dict[str, Fields]:
        """As `named`, by names of files."""
        return {self._file(show(name), name): fields for name, fields in self.named().items()}

    def _array(self, name: str) -> list[Any]:
        value = self.value(name)
        if not isinstance(value, list):
            raise self.refuse(name, f"is {show(value)}; expected an array")
        return value

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
            raise self.refuse(name, f"is {show(value)}; expected 1 to {_MAX_TEXT} printable characters")
        return value

    def _count(self, name: str, value: object, least: int) -> int:
        if type(value) is not int or not least <= value <= MAX_INTEGER:
            raise self.refuse(name, f"is {show(value)}; expected an integer from {least} to {MAX_INTEGER}")
        return value

    def _file(self, name: str, value: str) -> str:
        """Nothing in a manifest leads outside of its directory."""
        if value in {".", ".."} or "/" in value or "\\" in value:
            raise self.refuse(name, f"is the file name {show(value)}, which leads outside the engine")
        return value
