"""Frames of videos, which are written here by PyAV too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from l4export.errors import EnvironmentLacks, InputError
from l4export.runtimes.images import video
from l4export.runtimes.images.processor import ImageProcessor
from l4export.runtimes.images.video import frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds that go from black to white, ten frames each."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(0, 240, 6):
            picture = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def levels(found: list[Any]) -> list[int]:
    return [round(float(frame.image.mean())) for frame in found]


def test_frames_at_regular_times(clip: Path) -> None:
    found = frames(clip)
    assert [frame.seconds for frame in found] == [0, 1, 2, 3]
    assert levels(found) == pytest.approx([0, 60, 120, 180], abs=3)  # the codec loses some
    assert all(frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8 for frame in found)
    assert ImageProcessor()(found).grids == ((1, 1),) * 4
    assert levels(frames(str(clip), every=0.5, at_most=3)) == pytest.approx([0, 30, 60], abs=3)
    assert len(frames(clip, every=1e9)) == 1 and len(frames(clip, every=1e-9, at_most=1024)) == 40


def test_frames_are_upright(clip: Path, tmp_path: Path) -> None:
    turned = bytearray(clip.read_bytes())
    at = turned.index(b"\0\1\0\0" + bytes(12) + b"\0\1\0\0" + bytes(12) + b"@\0\0\0", turned.index(b"tkhd"))
    quarter = [0, 1 << 16, 0, -(1 << 16) % (1 << 32), 0, 0, 0, 0, 1 << 30]  # shown turned clockwise
    turned[at : at + 36] = b"".join(number.to_bytes(4, "big") for number in quarter)
    (tmp_path / "turned.mp4").write_bytes(turned)
    assert frames(tmp_path / "turned.mp4")[0].image.shape == (64, 48, 3)


def test_what_is_no_video_is_refused(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip}\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.txt").write_text(f"ffconcat version 1.0\nfile {clip}\n")
    (tmp_path / "half.mp4").write_bytes(clip.read_bytes()[:2000])
    for name in ("list.m3u8", "list.txt", "half.mp4"):
        with pytest.raises(InputError, match=f"{name}: cannot be decoded"):
            frames(tmp_path / name)
    with pytest.raises(InputError, match="absent: no such file"):
        frames(tmp_path / "absent")


def test_frames_that_are_too_large(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MOST_PIXELS", 1000)
    with pytest.raises(InputError, match="cannot be decoded"):
        frames(clip)


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"every": float("nan")}, {"every": "1"}, {"at_most": 0}, {"at_most": 10**6}]
)
def test_impossible_options(clip: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} is .*: give"):
        frames(clip, **options)


def test_without_pyav(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(EnvironmentLacks, match="videos need the package av"):
        frames(clip)
