"""Steps of a native session of 32 rows, in a process with `allocation_counter.c` preloaded: prints what they allocate.

Arguments: the engine, the counter's library. Prints the number of allocations in libl4export during 20 steps, and the
bytes of the largest allocation of anybody during the first steps of the session and these.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from native_library import native_library
from native_session import NativeEngine, RowTokens, array, check, library


def mapped(name: str) -> tuple[int, int]:
    """First address and end of a loaded library."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if name in line]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    return min(first for first, _ in spans), max(last for _, last in spans)


engine, counter = sys.argv[1], ctypes.CDLL(sys.argv[2])
counter.largest_allocation.restype = ctypes.c_size_t
session = NativeEngine(engine).session(32)
counter.begin_counting(ctypes.c_void_p(0), ctypes.c_void_p(0))
session.append([[1, 2, 3], [4, 5]], last_only=True)
size = ctypes.sizeof(RowTokens)
ids = array(ctypes.c_int32, [7, 8])
at = [ctypes.cast(ctypes.byref(ids, 4 * row), ctypes.POINTER(ctypes.c_int32)) for row in (0, 1)]
tokens = (RowTokens * 2)(*(RowTokens(size, row, at[row], 1, None) for row in (0, 1)))
logits, positions = ctypes.POINTER(ctypes.c_float)(), ctypes.c_size_t()
two = ctypes.c_size_t(2)
first, last = mapped("libl4export")


def step() -> None:
    check(library().l4_session_append(session.handle, tokens, two, 1, ctypes.byref(logits), ctypes.byref(positions)))


step()
largest = counter.largest_allocation()
counter.begin_counting(ctypes.c_void_p(first), ctypes.c_void_p(last))
for _ in range(20):
    step()
print(counter.allocations(), max(largest, counter.largest_allocation()))
counter.begin_counting(ctypes.c_void_p(first), ctypes.c_void_p(last))
session.fork()
print(counter.allocations())
assert native_library()
