"""Frames of a video, which Llama 4 sees as images. Decoded by PyAV, which brings FFmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from l4export.errors import EnvironmentLacks, InputError
from l4export.runtimes.arguments import a_number, a_path, a_whole_number
from l4export.runtimes.images.decoding import MOST_PIXELS, Frame
from l4export.storage.regular_files import open_regular

__all__ = ["frames"]

MOST_FRAMES = 1024
"""Frames that are taken of a video: with 147 tokens each they fill 150,000 positions."""

_CONTAINERS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts",
    "protocol_whitelist": "none",
}
"""FFmpeg also reads lists of other files and of URLs; these are containers of one file each."""


def frames(path: str | Path, every: float = 1.0, at_most: int = 16) -> list[Frame]:
    """Take frames of a video at regular times: the first, and then the next after each interval.

    Args:
        path: A file.
        every: Seconds between two frames.
        at_most: How many frames are taken; the rest of the video is not looked at.

    Returns:
        The frames, uint8 [H, W, 3] each, upright. A processor gives each one tile unless it is asked for more.

    Raises:
        InputError: the file is no video that is decoded, is damaged before the last frame that is taken, or too large.
        EnvironmentLacks: the package av is missing.
        StorageError: the file cannot be read.
    """
    path = a_path(path, "path")
    every = a_number(every, "every", wanted := "seconds, more than 0")
    if every <= 0:
        raise InputError(f"every is {every}: give {wanted}")
    at_most = a_whole_number(at_most, "at_most", 1, MOST_FRAMES)
    try:
        import av
    except ImportError:
        raise EnvironmentLacks("videos need the package av: pip install 'l4export[video]'") from None
    with open_regular(path, "give the path of a video") as file:
        try:
            with av.open(file, options=_CONTAINERS) as container:
                found = list(islice(_chosen(container, path, every), at_most))
        except av.FFmpegError as error:
            raise InputError(f"{path}: cannot be decoded ({error.strerror}); give a whole video file") from None
    if not found:
        raise InputError(f"{path}: has no frames; give a video")
    return found


def _chosen(container: Any, path: Path, every: float) -> Iterator[Frame]:
    if not container.streams.video:
        raise InputError(f"{path}: has no video; give a video")
    stream = container.streams.video[0]
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
    start = due = None
    for frame in container.decode(stream):
        if frame.time is None:
            raise InputError(f"{path}: has frames without times; give a list of images")
        if start is None or frame.time >= due:
            start = frame.time if start is None else start
            due = start + every * (1 + (frame.time - start) // every)
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            yield Frame(pixels, frame.time - start)
