"""The dialect's functions for images, each alone in ONNX Runtime, against a definition in plain NumPy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tiny_graphs import call

FLOAT = ir.DataType.FLOAT
IMAGE = 9


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_patches_are_cut_channel_by_channel() -> None:
    tiles = random(2, 3, 6, 6)
    (got,) = call("Patches", {"pixel_values": tiles}, [FLOAT], grid=3, patch_size=2)
    for y in range(3):
        for x in range(3):
            patch = tiles[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            np.testing.assert_array_equal(got[:, 3 * y + x], patch.reshape(2, -1))


def test_the_class_token_is_last_in_every_tile() -> None:
    x, token = random(2, 3, 4), random(4, seed=1)
    (got,) = call("AppendClassToken", {"x": x, "class_embedding": token}, [FLOAT])
    np.testing.assert_array_equal(got, np.concatenate([x, np.broadcast_to(token, (2, 1, 4))], axis=1))


def test_every_tile_has_the_same_angles() -> None:
    x, cos, sin = random(3, 5, 8), random(5, 2, seed=1), random(5, 2, seed=2)
    got = call("TileAngles", {"x": x, "cos": cos, "sin": sin}, [FLOAT, FLOAT])
    for found, table in zip(got, (cos, sin), strict=True):
        np.testing.assert_array_equal(found, np.broadcast_to(table, (3, 5, 2)))


@pytest.mark.parametrize("tiles", [1, 3])
def test_attention_within_a_tile(tiles: int) -> None:
    q, k, v = (random(tiles, 5, 24, seed=seed) for seed in range(3))
    (got,) = call("TileAttention", {"q": q, "k": k, "v": v}, [FLOAT], num_heads=3)
    heads = [array.reshape(tiles, 5, 3, 8).transpose(0, 2, 1, 3).astype(np.float64) for array in (q, k, v)]
    scores = np.exp(heads[0] @ heads[1].swapaxes(2, 3) / np.sqrt(8))
    expected = (scores / scores.sum(-1, keepdims=True) @ heads[2]).transpose(0, 2, 1, 3).reshape(q.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)  # sums of 8 and 5 products in float32


@pytest.mark.parametrize("block", [1, 2, 4])
def test_pixel_shuffle_is_that_of_transformers(block: int) -> None:
    import torch
    from transformers.models.llama4.modeling_llama4 import pixel_shuffle

    x = random(2, 64, 16)
    (got,) = call("PixelShuffle", {"x": x}, [FLOAT], grid=8, block=block)
    np.testing.assert_array_equal(got, pixel_shuffle(torch.from_numpy(x), 1 / block).numpy())


# MergeImages


def merged(ids: np.ndarray, features: np.ndarray, embedded: np.ndarray) -> np.ndarray:
    inputs = {"embedded": embedded, "token_ids": ids, "image_features": features}
    (got,) = call("MergeImages", inputs, [FLOAT], image_token=IMAGE)
    return got


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([[1, 9, 9, 2]], id="one image"),
        pytest.param([[9, 9, 9, 9]], id="nothing else"),
        pytest.param([[9]], id="one token within an image"),
        pytest.param([[1, 9, 2, 9], [9, 3, 3, 3], [1, 2, 3, 4]], id="rows"),
    ],
)
def test_features_take_the_places_of_image_tokens_in_order(ids: list[list[int]]) -> None:
    tokens = np.asarray(ids)
    embedded, features = random(*tokens.shape, 6), random(int((tokens == IMAGE).sum()), 6, seed=1)
    expected = embedded.copy()
    expected[tokens == IMAGE] = features
    np.testing.assert_array_equal(merged(tokens, features, embedded), expected)


def test_without_features_image_tokens_keep_their_embedding() -> None:
    ids, embedded = np.asarray([[1, IMAGE, IMAGE]]), random(1, 3, 6)
    np.testing.assert_array_equal(merged(ids, np.zeros((0, 6), np.float32), embedded), embedded)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_another_number_of_features_stops_the_run(rows: int) -> None:
    with pytest.raises(Exception, match="image_features_must_match_image_tokens"):
        merged(np.asarray([[1, IMAGE, IMAGE]]), random(rows, 6), random(1, 3, 6))


def test_features_without_image_tokens_stop_the_run() -> None:
    with pytest.raises(Exception, match="image_features_must_match_image_tokens"):
        merged(np.asarray([[1, 2]]), random(1, 6), random(1, 2, 6))


# RequireFeatures


def required(ids: list[list[int]], rows: int) -> np.ndarray:
    inputs = {"token_ids": np.asarray(ids), "image_features": random(rows, 6)}
    (got,) = call("RequireFeatures", inputs, [ir.DataType.INT64], image_token=IMAGE)
    return got


@pytest.mark.parametrize(
    ("ids", "rows"),
    [
        pytest.param([[1, 2, 3]], 0, id="text"),
        pytest.param([[1, IMAGE, IMAGE]], 2, id="an image"),
        pytest.param([[1, IMAGE, IMAGE]], 1, id="which the merge refuses"),
        pytest.param([[IMAGE]], 0, id="one that was generated"),
        pytest.param([[IMAGE], [IMAGE]], 0, id="one in each row"),
    ],
)
def test_tokens_with_features_stay_as_they_are(ids: list[list[int]], rows: int) -> None:
    np.testing.assert_array_equal(required(ids, rows), ids)


@pytest.mark.parametrize("ids", [[[1, IMAGE]], [[IMAGE, IMAGE]], [[1, 2], [1, IMAGE]]])
def test_image_tokens_among_several_need_features(ids: list[list[int]]) -> None:
    with pytest.raises(Exception, match="image_tokens_need_features"):
        required(ids, 0)
