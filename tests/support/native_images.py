"""Images through the C ABI."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from native_library import check, native_library

__all__ = ["ImageInfo", "NativeImages", "Picture", "expand", "picture_struct"]


class Picture(ctypes.Structure):
    """`l4_picture`."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("rgb", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("height", ctypes.c_int64),
    ]


class _Info(ctypes.Structure):
    """`l4_image_info`."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("tiles", ctypes.c_int32),
        ("tokens", ctypes.c_int64),
        ("digest", ctypes.c_char_p),
    ]


@dataclass(frozen=True)
class ImageInfo:
    """What is said about one image."""

    grid: tuple[int, int]
    tiles: int
    tokens: int
    digest: str


def picture_struct(pixels: NDArray[np.uint8]) -> Picture:
    """uint8 [H, W, 3] as the C ABI takes it; the array must live as long."""
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    return Picture(ctypes.sizeof(Picture), pixels.ctypes.data, pixels.shape[1], pixels.shape[0])


class NativeImages:
    """An `l4_images`; closed with the object.

    Args:
        directory: Of a checkpoint or an engine.
        pictures: uint8 [H, W, 3] each.
        max_tiles: 0: as the checkpoint says.
    """

    def __init__(self, directory: Path | str, pictures: Sequence[NDArray[np.uint8]], max_tiles: int = 0) -> None:
        arrays = [np.ascontiguousarray(pixels) for pixels in pictures]
        structs = (Picture * len(arrays))(*map(picture_struct, arrays))
        self.handle = ctypes.c_void_p()
        library = native_library()
        create = library.l4_images_create
        check(
            create(os.fsencode(directory), structs, ctypes.c_size_t(len(arrays)), max_tiles, ctypes.byref(self.handle))
        )
        weakref.finalize(self, library.l4_images_close, self.handle)

    def __len__(self) -> int:
        count = native_library().l4_images_count
        count.restype = ctypes.c_size_t
        return int(count(self.handle))

    @property
    def infos(self) -> list[ImageInfo]:
        """Of each image."""
        return [self._info(index) for index in range(len(self))]

    def _info(self, index: int) -> ImageInfo:
        found = _Info(ctypes.sizeof(_Info))
        check(native_library().l4_images_get_info(self.handle, ctypes.c_size_t(index), ctypes.byref(found)))
        return ImageInfo((found.rows, found.columns), found.tiles, found.tokens, found.digest.decode())

    @property
    def tiles(self) -> NDArray[np.float32]:
        """All tiles, a copy: float32 [tiles, 3, T, T]."""
        values, tiles, side = ctypes.POINTER(ctypes.c_float)(), ctypes.c_size_t(), ctypes.c_size_t()
        where: list[Any] = [ctypes.byref(value) for value in (values, tiles, side)]
        check(native_library().l4_images_tiles(self.handle, *where))
        shape = (tiles.value, 3, side.value, side.value)
        return np.ctypeslib.as_array(values, shape).copy() if tiles.value else np.empty(shape, np.float32)

    def expand(self, tokenizer: ctypes.c_void_p, ids: Sequence[int]) -> list[int]:
        """`l4_images_expand`, asked for the count first."""
        return expand(self.handle, tokenizer, ids)


def expand(images: ctypes.c_void_p | None, tokenizer: ctypes.c_void_p, ids: Sequence[int]) -> list[int]:
    """`l4_images_expand`, with or without images."""
    given, count = (ctypes.c_int32 * len(ids))(*ids), ctypes.c_size_t()
    call = native_library().l4_images_expand
    start = (images, tokenizer, given, ctypes.c_size_t(len(ids)))
    check(call(*start, None, ctypes.c_size_t(0), ctypes.byref(count)))
    expanded = (ctypes.c_int32 * count.value)()
    check(call(*start, expanded, count, ctypes.byref(count)))
    return list(expanded)
