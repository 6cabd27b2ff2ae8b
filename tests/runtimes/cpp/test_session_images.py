"""Sessions of the native library that see images: the numbers and refusals of the Python runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import picture
from seeing import PATCH, prompt, seeing_checkpoint, seen
from session_twins import Twins

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.runtimes.images.processor import ProcessedImages
from native_images import NativeImages
from native_library import NativeError
from native_session import NativeEngine
from workshop import LAYOUTS, random_ids

SIZES = [(14, 30), (9, 9)]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing_checkpoint(tmp_path_factory.mktemp("see") / "c")


@pytest.fixture(scope="module")
def paths(checkpoint: Path) -> dict[str, Path]:
    made = {layout: checkpoint.parent / layout for layout in LAYOUTS}
    for layout, path in made.items():
        build(checkpoint, path, BuildOptions(kv_layout=layout, max_context=96))
    return made


def both(path: Path) -> tuple[ProcessedImages, NativeImages, list[int]]:
    """The same two images for each runtime, and a prompt that shows them."""
    images = seen(path, SIZES)
    return images, NativeImages(path, [picture(*size) for size in SIZES]), prompt(images, [5, 6, 9]).tolist()


@layouts
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_logits_are_those_of_the_python_runtime(
    checkpoint: Path, tmp_path: Path, paths: dict[str, Path], layout: str, dtype: str
) -> None:
    path = paths[layout]
    if dtype == "fp16":
        path = tmp_path / "fp16"
        build(checkpoint, path, BuildOptions(kv_layout=layout, max_context=96, vision_dtype="fp16"))
    python, native = runtimes.load(path, threads=1), NativeEngine(path)
    assert native.info.sees_images
    images, handles, ids = both(path)
    twins = Twins(python.session(), native.session())
    expected = twins.python.append(ids, images=images)
    np.testing.assert_array_equal(twins.native.append([ids], images=[handles.handle]), expected)
    twins.append([[3]], last_only=True)
    twins.check()
    native.forget_images()
    rows = Twins(python.session(3), native.session(3))
    expected = rows.python.append([ids, [1, 2], ids], images=[images, None, images])
    given = [handles.handle, None, handles.handle]
    np.testing.assert_array_equal(rows.native.append([ids, [1, 2], ids], images=given), expected)


@layouts
def test_saved_with_its_images(tmp_path: Path, paths: dict[str, Path], layout: str) -> None:
    """Both write the same bytes; a row that is loaded or copied cannot go back into an image."""
    path = paths[layout]
    python, native = runtimes.load(path, threads=1), NativeEngine(path)
    images, handles, ids = both(path)
    twins = Twins(python.session(), native.session())
    twins.python.append(ids, images=images)
    twins.native.append([ids], images=[handles.handle])
    twins.python.save(tmp_path / "python")
    twins.native.save(tmp_path / "native")
    assert (tmp_path / "python").read_bytes() == (tmp_path / "native").read_bytes()
    loaded = Twins(python.load_session(tmp_path / "native"), native.load_session(tmp_path / "python"))
    loaded.both(lambda session: session.rewind([11]))
    copy = native.session()
    copy.copy_row(0, loaded.native, 0)
    with pytest.raises(NativeError, match="in the middle of an image; go back to 30 or 34 tokens"):
        copy.rewind([11])
    loaded.both(lambda session: session.rewind([9]))


def test_other_images_than_the_prompt_shows(paths: dict[str, Path]) -> None:
    path = paths["static"]
    python, native = runtimes.load(path, threads=1), NativeEngine(path)
    images, handles, ids = both(path)
    twins = Twins(python.session(2), native.session(2))
    for rows, shown in (
        ([ids, [1]], (None, None)),
        ([ids[:-30], [1]], (images, handles.handle)),
        ([[*ids, PATCH], [1]], (images, handles.handle)),
    ):
        with pytest.raises(InputError) as expected:
            twins.python.append(rows, images=[shown[0], None])
        with pytest.raises(NativeError) as caught:
            twins.native.append(rows, images=[shown[1], None])
        assert str(caught.value) == str(expected.value)
    twins.check()


def test_an_engine_that_sees_nothing(checkpoint: Path, paths: dict[str, Path], tmp_path: Path) -> None:
    from l4export.checkpoint.sample import write_sample

    write_sample(tmp_path / "blind", "scout", "tiny", seed=3)
    build(tmp_path / "blind", tmp_path / "engine", BuildOptions(max_context=64))
    images = NativeImages(paths["static"], [picture(9, 9)])
    with pytest.raises(NativeError, match="row 0: has images, and this engine sees none"):
        NativeEngine(tmp_path / "engine").session().append([random_ids(9).tolist()], images=[images.handle])
