"""Reads the pickle of a state dict as the description that it is. Nothing in it is ever called, imported or executed.

A pickle is a program for a stack machine that may call any function by name. A state dict as torch.save writes it uses
few of its instructions and names [Python, pickletools; PyTorch, torch/_utils.py and torch/serialization.py]: a
dictionary of names, and for each name a call of `torch._utils._rebuild_tensor_v2` (`v3` for newer dtypes) with a
storage, an offset, a shape and strides, perhaps within `_rebuild_parameter`. Here these are read as records. Every
other instruction and every other name is refused by its name, before anything is made of it.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from l4export.errors import InputError, printable

__all__ = ["PickledTensor", "read_state_dict"]

_MAX_OPERATIONS = 250_000  # five times those of a shard of Maverick; each may make an object of a hundred bytes

_STORAGES = {
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.DoubleStorage": "F64",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.ComplexFloatStorage": "C64",
}
_UNTYPED = "torch.storage.UntypedStorage"
_DTYPES = {"torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2"}
_ORDERED, _PARAMETER = "collections.OrderedDict", "torch._utils._rebuild_parameter"
_TENSOR, _TENSOR3 = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"
_BYTES_FILE, _ENCODE = "_io.BytesIO", "_codecs.encode"
_NAMES = {*_STORAGES, *_DTYPES, _UNTYPED, _ORDERED, _PARAMETER, _TENSOR, _TENSOR3, _BYTES_FILE, _ENCODE}

_INSTRUCTIONS = {each.code: each.name for each in pickletools.opcodes}  # for messages


@dataclass(frozen=True)
class PickledTensor:
    """A tensor: elements of a storage, counted from `offset` on. Dtypes are spelled as safetensors spells them.

    Attributes:
        storage: The storage's key.
        storage_size: Its elements, of `dtype`; where `in_bytes`, its bytes.
        in_bytes: See `storage_size`.
        dtype: Of the elements.
        offset: Of the first element.
        shape: Elements along each dimension.
        strides: Elements from one index to the next, for each dimension.
    """

    storage: str
    storage_size: int
    in_bytes: bool
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A name of `_NAMES`, which is never looked up."""

    text: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    size: int


class _Skipped:
    """An object of bytes, such as Transformer Engine leaves behind as an extra state. It holds no weight."""


def read_state_dict(data: bytes, where: str) -> dict[str, PickledTensor]:
    """The tensors of a pickled state dict by name. Objects of bytes and None are left out.

    Raises:
        InputError: an instruction or a name that no state dict needs, something else than tensors, a name that is there
            twice, or a damaged pickle; the message begins with `where`.
    """
    found: dict[str, PickledTensor] = {}
    for name, value in _Reader(data, where).run().items():
        if isinstance(value, PickledTensor):
            found[name] = value
        elif value is not None and not isinstance(value, _Skipped):
            what = type(value).__name__.lstrip("_").lower()
            raise InputError(f"{where}: {printable(name)[:200]!r} is no tensor ({what}); only state dicts are read")
    return found


class _Reader:
    """The stack machine, for the instructions of a state dict."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where, self._at = data, where, 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> dict[str, Any]:
        """The dictionary that is on the stack in the end."""
        for _ in range(_MAX_OPERATIONS):
            code = self._take(1)
            if code == b".":
                return self._result()
            if not (operation := _OPERATIONS.get(code)):
                named = _INSTRUCTIONS.get(code.decode("latin-1"), f"0x{code.hex()}")
                raise self._refuse(f"instruction {named} of its pickle is not one that a state dict needs")
            operation(self)
        raise self._refuse(f"its pickle has more than {_MAX_OPERATIONS} instructions, more than any checkpoint needs")

    def _result(self) -> dict[str, Any]:
        if len(self._stack) != 1 or self._marks or self._at != len(self._data):
            raise self._refuse("its pickle is damaged: something is left over")
        if not isinstance(result := self._stack[0], dict):
            raise self._refuse("it holds no state dict")
        return result

    def _refuse(self, problem: str) -> InputError:
        return InputError(f"{self._where}: {problem}; nothing of it was executed")

    def _take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) < count:
            raise self._refuse("its pickle is truncated")
        self._at += count
        return piece

    def _number(self, count: int) -> int:
        return int.from_bytes(self._take(count), "little")

    def _text(self, count: int) -> str:
        try:
            return self._take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise self._refuse("its pickle has a text that is not UTF-8") from None

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + 200)
        if end < 0:
            raise self._refuse("its pickle has a name without an end")
        text = self._text(end - self._at)
        self._at += 1
        return text

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self._refuse("its pickle is damaged: it takes what is not there")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise self._refuse("its pickle is damaged: a mark is missing")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _tuple(self, count: int) -> None:
        self._push(tuple(reversed([self._pop() for _ in range(count)])))

    def _remember(self, index: int) -> None:
        self._memo[index] = self._pop()
        self._push(self._memo[index])

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise self._refuse("its pickle is damaged: it recalls what it never had")
        self._push(self._memo[index])

    def _name(self, module: Any, name: Any) -> None:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "what is no name"
        if full not in _NAMES:
            raise self._refuse(f"its pickle names {printable(full)[:200]!r}, which no state dict needs")
        self._push(_Name(full))

    def _stack_name(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _set(self, items: list[Any]) -> None:
        target = self._pop()
        self._push(target)
        if not isinstance(target, dict) or len(items) % 2:
            raise self._refuse("its pickle is damaged: it sets an item of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise self._refuse("its pickle has a dictionary whose keys are not names")
            if key in target:
                raise self._refuse(f"{printable(key)[:200]!r} is there twice")
            target[key] = value

    def _set_one(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _append(self, items: list[Any]) -> None:
        target = self._pop()
        self._push(target)
        if not isinstance(target, list):
            raise self._refuse("its pickle is damaged: it appends to what is no list")
        target.extend(items)

    def _storage(self) -> None:
        """A reference to what lies outside of the pickle: ("storage", type, key, device, size)."""
        match self._pop():
            case ("storage", _Name(text=kind), str(key), str(), int(size)) if kind in _STORAGES or kind == _UNTYPED:
                self._push(_Storage(kind, key, size))
            case _:
                raise self._refuse("its pickle refers to something that is no storage")

    def _reduce(self) -> None:
        """A call, read as a record."""
        arguments, function = self._pop(), self._pop()
        name = function.text if isinstance(function, _Name) else "what is no name"
        if not isinstance(arguments, tuple):
            raise self._refuse("its pickle is damaged: a call without arguments")
        match name, arguments:
            case "collections.OrderedDict", ():
                self._push({})
            case "_codecs.encode", (str(), str()):
                self._push(_Skipped())
            case "torch._utils._rebuild_parameter", (PickledTensor() as tensor, bool(), dict()):
                self._push(tensor)
            case "torch._utils._rebuild_tensor_v2", (_Storage() as storage, offset, shape, strides, bool(), dict()):
                self._push(self._tensor(storage, _STORAGES.get(storage.kind), offset, shape, strides))
            case (
                "torch._utils._rebuild_tensor_v3",
                (_Storage() as storage, offset, shape, strides, bool(), dict(), _Name(text=dtype)),
            ) if storage.kind == _UNTYPED:
                self._push(self._tensor(storage, _DTYPES.get(dtype), offset, shape, strides))
            case _:
                raise self._refuse(f"its pickle calls {name!r} with arguments that no state dict needs")

    def _tensor(self, storage: _Storage, dtype: str | None, offset: Any, shape: Any, strides: Any) -> PickledTensor:
        numbers = [offset, *shape, *strides] if isinstance(shape, tuple) and isinstance(strides, tuple) else [None]
        whole = all(type(number) is int and 0 <= number < 2**63 for number in (storage.size, *numbers))
        if dtype is None or not whole or len(shape) != len(strides) or len(shape) > 32:
            raise self._refuse("its pickle has a tensor of impossible dtype, shape or strides")
        return PickledTensor(storage.key, storage.size, storage.kind == _UNTYPED, dtype, offset, shape, strides)

    def _new(self) -> None:
        arguments, kind = self._pop(), self._pop()
        if kind != _Name(_BYTES_FILE) or not isinstance(arguments, tuple) or arguments:
            raise self._refuse("its pickle makes an object that no state dict needs")
        self._push(_Skipped())

    def _build(self) -> None:
        """The state of an object: of one of bytes, or the versions of modules that `Module.state_dict` adds."""
        state, target = self._pop(), self._pop()
        self._push(target)
        versions = isinstance(target, dict) and isinstance(state, dict) and set(state) <= {"_metadata"}
        if not versions and not isinstance(target, _Skipped):
            raise self._refuse("its pickle sets the state of what has none")


def _operations() -> dict[bytes, Callable[[_Reader], None]]:
    """What each instruction does, by its byte."""
    r = _Reader

    def skip(reader: _Reader, count: int) -> None:
        reader._take(count)

    def constant(value: Any) -> Callable[[_Reader], None]:
        return lambda reader: reader._push(value)

    def integer(count: int, signed: bool = False) -> Callable[[_Reader], None]:
        return lambda reader: reader._push(int.from_bytes(reader._take(count), "little", signed=signed))

    def text(count: int) -> Callable[[_Reader], None]:
        return lambda reader: reader._push(reader._text(reader._number(count)))

    def some_bytes(count: int) -> Callable[[_Reader], None]:
        def operation(reader: _Reader) -> None:
            skip(reader, reader._number(count))
            reader._push(_Skipped())

        return operation

    def long(reader: _Reader) -> None:
        count = reader._number(1)
        if count > 8:
            raise reader._refuse("its pickle has a number of more than 8 bytes")
        reader._push(int.from_bytes(reader._take(count), "little", signed=True))

    return {
        b"\x80": lambda reader: skip(reader, 1),  # PROTO
        b"\x95": lambda reader: skip(reader, 8),  # FRAME
        b"(": lambda reader: reader._marks.append(len(reader._stack)),  # MARK
        b"}": lambda reader: reader._push({}),  # EMPTY_DICT
        b"]": lambda reader: reader._push([]),  # EMPTY_LIST
        b")": constant(()),  # EMPTY_TUPLE
        b"N": constant(None),  # NONE
        b"\x88": constant(True),  # NEWTRUE
        b"\x89": constant(False),  # NEWFALSE
        b"K": integer(1),  # BININT1
        b"M": integer(2),  # BININT2
        b"J": integer(4, signed=True),  # BININT
        b"\x8a": long,  # LONG1
        b"\x8c": text(1),  # SHORT_BINUNICODE
        b"X": text(4),  # BINUNICODE
        b"\x8d": text(8),  # BINUNICODE8
        b"C": some_bytes(1),  # SHORT_BINBYTES
        b"B": some_bytes(4),  # BINBYTES
        b"q": lambda reader: reader._remember(reader._number(1)),  # BINPUT
        b"r": lambda reader: reader._remember(reader._number(4)),  # LONG_BINPUT
        b"\x94": lambda reader: reader._remember(len(reader._memo)),  # MEMOIZE
        b"h": lambda reader: reader._recall(reader._number(1)),  # BINGET
        b"j": lambda reader: reader._recall(reader._number(4)),  # LONG_BINGET
        b"\x85": lambda reader: reader._tuple(1),  # TUPLE1
        b"\x86": lambda reader: reader._tuple(2),  # TUPLE2
        b"\x87": lambda reader: reader._tuple(3),  # TUPLE3
        b"t": lambda reader: reader._push(tuple(reader._pop_to_mark())),  # TUPLE
        b"a": lambda reader: reader._append([reader._pop()]),  # APPEND
        b"e": lambda reader: reader._append(reader._pop_to_mark()),  # APPENDS
        b"s": r._set_one,  # SETITEM
        b"u": lambda reader: reader._set(reader._pop_to_mark()),  # SETITEMS
        b"c": lambda reader: reader._name(reader._line(), reader._line()),  # GLOBAL
        b"\x93": r._stack_name,  # STACK_GLOBAL
        b"Q": r._storage,  # BINPERSID
        b"R": r._reduce,  # REDUCE
        b"\x81": r._new,  # NEWOBJ
        b"b": r._build,  # BUILD
    }


_OPERATIONS = _operations()
