"""Images -> tensors: against torch's own resizing, against obvious loops, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from outrider.runtime.errors import BadDataError
from outrider.runtime.images import ImagePlan, prepare
from outrider.runtime.images.filters import make_taps
from outrider.runtime.images.resize import resize

Array = np.ndarray
SIZES = [((48, 64), (24, 32)), ((48, 64), (37, 23)), ((31, 57), (90, 101)), ((7, 5), (1, 1)), ((1, 1), (4, 3))]
replace = msgspec.structs.replace


def picture(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def resized(image: Array, size: tuple[int, int], kind: Any) -> Array:
    """[c, h, w]."""
    return resize(image, make_taps(kind, image.shape[0], size[0]), make_taps(kind, image.shape[1], size[1]))


def by_torch(image: Array, size: tuple[int, int], mode: str, **options: Any) -> Array:
    planes = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float64))[None]
    found: Array = torch.nn.functional.interpolate(planes, size, mode=mode, **options)[0].numpy()
    return found


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("bilinear", "bilinear", {"align_corners": False}),
        ("antialias", "bilinear", {"align_corners": False, "antialias": True}),
    ],
)
def test_resizing_is_that_of_torch(
    source: tuple[int, int], target: tuple[int, int], kind: str, mode: str, options: dict[str, bool]
) -> None:
    image = picture(*source)
    np.testing.assert_allclose(resized(image, target, kind), by_torch(image, target, mode, **options), atol=1e-4)


@pytest.mark.parametrize("target", [(24, 32), (96, 128), (7, 9)])
def test_nearest_is_that_of_torch(target: tuple[int, int]) -> None:
    image = picture(48, 64)
    assert np.array_equal(resized(image, target, "nearest"), by_torch(image, target, "nearest-exact"))
    assert make_taps("nearest", 48, 37).indices[0, 18] == 24  # 18.5 * 48 / 37 exactly, which torch rounds down


def test_the_area_of_whole_pixels_is_that_of_torch() -> None:
    image = picture(48, 60)
    np.testing.assert_allclose(resized(image, (16, 12), "area"), by_torch(image, (16, 12), "area"), atol=1e-4)


@given(source=st.integers(1, 40), target=st.integers(1, 40))
def test_area_is_the_mean_over_fractions_of_pixels(source: int, target: int) -> None:
    values = np.arange(source, dtype=np.float64) ** 2
    fine = np.repeat(values, target).reshape(target, source).mean(axis=1)  # both in steps of 1 / target
    taps = make_taps("area", source, target)
    np.testing.assert_allclose((values[taps.indices] * taps.weights).sum(axis=0), fine, rtol=1e-5, atol=1e-5)


@given(
    kind=st.sampled_from(["nearest", "bilinear", "antialias", "area"]),
    source=st.integers(1, 300),
    target=st.integers(1, 300),
)
def test_taps_stay_inside_and_add_up(kind: Any, source: int, target: int) -> None:
    taps = make_taps(kind, source, target)
    assert taps.indices.shape == taps.weights.shape
    assert taps.indices.shape[1] == target
    assert taps.indices.min() >= 0
    assert taps.indices.max() < source
    assert taps.weights.min() >= 0
    np.testing.assert_allclose(taps.weights.sum(axis=0), 1, atol=1e-6)


def test_antialias_is_within_rounding_of_pillow() -> None:
    image = picture(120, 160)
    pillow = np.asarray(Image.fromarray(image).resize((53, 41), Image.Resampling.BILINEAR), np.float32)
    assert np.abs(resized(image, (41, 53), "antialias") - pillow.transpose(2, 0, 1)).max() <= 1.01


PLAN = ImagePlan(input="x", size=(24, 32), interpolation="bilinear")


def test_colour_layout_and_normalisation() -> None:
    image = picture(24, 32)
    plain = prepare(PLAN, image).tensor
    assert plain.shape == (1, 3, 24, 32)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(plain[0], image.transpose(2, 0, 1) / 255, atol=1e-6)
    bgr = prepare(replace(PLAN, colour="BGR", layout="NHWC", scale=1.0, mean=(104, 117, 123)), image).tensor
    np.testing.assert_allclose(bgr[0], image[..., ::-1] - np.array([104.0, 117, 123]), atol=1e-4)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    usual = prepare(replace(PLAN, mean=mean, std=std), image).tensor
    np.testing.assert_allclose(usual[0].transpose(1, 2, 0), (image / 255 - mean) / std, atol=1e-5)
    grey = prepare(replace(PLAN, colour="grey", scale=1.0), image).tensor
    assert grey.shape == (1, 1, 24, 32)
    np.testing.assert_allclose(grey[0, 0], image @ np.array([0.299, 0.587, 0.114]), atol=1e-3)


def test_integers_and_half_precision() -> None:
    image = picture(48, 64)
    exact = prepare(replace(PLAN, scale=1.0), image).tensor
    whole = prepare(replace(PLAN, dtype="uint8"), image).tensor
    assert np.array_equal(whole, np.rint(exact).astype(np.uint8))
    assert np.array_equal(
        prepare(replace(PLAN, dtype="uint8", size=(48, 64)), image).tensor[0], image.transpose(2, 0, 1)
    )
    shifted = prepare(replace(PLAN, dtype="int8", mean=(128,)), image).tensor
    assert np.array_equal(shifted, (np.rint(exact) - 128).astype(np.int8))
    clipped = prepare(replace(PLAN, dtype="int8"), image).tensor
    assert clipped.max() == 127
    half = prepare(replace(PLAN, dtype="float16"), image).tensor
    assert half.dtype == np.float16


def test_a_letterbox_is_filled() -> None:
    plan = replace(PLAN, fit="letterbox", size=(32, 32), pad=114)
    image = np.full((20, 40, 3), 255, np.uint8)
    ready = prepare(plan, image)
    rows = ready.tensor[0, 1, :, 5]
    np.testing.assert_allclose(rows[:8], 114 / 255, atol=1e-6)
    np.testing.assert_allclose(rows[8:24], 1, atol=1e-6)
    np.testing.assert_allclose(rows[24:], 114 / 255, atol=1e-6)
    corner = prepare(replace(plan, align="corner"), image).tensor[0, 1, :, 5]
    np.testing.assert_allclose(corner[:16], 1, atol=1e-6)
    np.testing.assert_allclose(corner[16:], 114 / 255, atol=1e-6)


def test_a_crop_is_the_middle_of_the_resized_image() -> None:
    image = picture(60, 91)
    plan = replace(PLAN, fit="crop", size=(24, 24), shorter=32, interpolation="antialias", scale=1.0)
    whole = resized(image, (32, 48), "antialias")
    np.testing.assert_allclose(prepare(plan, image).tensor[0], whole[:, 4:28, 12:36], atol=1e-4)
    covering = prepare(replace(plan, shorter=None), image).tensor[0]
    np.testing.assert_allclose(covering, resized(image, (24, 36), "antialias")[:, :, 6:30], atol=1e-4)


def test_images_of_any_sizes_are_each_computed_alone() -> None:
    images = [picture(30, 40, 1), picture(24, 32, 2), picture(50, 20, 3)[:, :, 0]]
    together = prepare(replace(PLAN, fit="letterbox"), images)
    for i, image in enumerate(images):
        alone = prepare(replace(PLAN, fit="letterbox"), image)
        assert np.array_equal(together.tensor[i], alone.tensor[0])
        assert together.placements[i] == alone.placements[0]
    stacked = np.stack([picture(9, 9, 4), picture(9, 9, 5)])
    assert np.array_equal(prepare(PLAN, stacked).tensor, prepare(PLAN, list(stacked)).tensor)


@settings(max_examples=30)
@given(height=st.integers(1, 50), width=st.integers(1, 50), fit=st.sampled_from(["stretch", "letterbox", "crop"]))
def test_memory_layout_changes_nothing(height: int, width: int, fit: Any) -> None:
    image, plan = picture(height, width), replace(PLAN, fit=fit, interpolation="antialias")
    plain = prepare(plan, image).tensor
    assert np.isfinite(plain).all()
    assert np.array_equal(prepare(plan, np.asfortranarray(image)).tensor, plain)
    assert np.array_equal(prepare(plan, picture(height, width)[::-1][::-1]).tensor, plain)
    last = prepare(replace(plan, layout="NHWC"), image).tensor
    assert last.flags.c_contiguous
    assert np.array_equal(last.transpose(0, 3, 1, 2), plain)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no image"),
        ("a.png", "a str"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((3,), np.uint8), r"\(3,\)"),
        (np.zeros((0, 4, 3), np.uint8), "sides are"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no image"),
        ([np.zeros((4, 4, 3), np.uint8), None], "NoneType"),
    ],
)
def test_what_is_no_image(images: Any, message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        prepare(PLAN, images)
