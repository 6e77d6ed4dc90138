"""Images -> the model's input, by the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadDataError
from outrider.runtime.images.filters import Taps, make_taps
from outrider.runtime.images.placement import Placement, place
from outrider.runtime.images.plan import Colour, ImagePlan
from outrider.runtime.images.resize import resize

Array = NDArray[Any]
Image = NDArray[np.uint8]
_Linear = tuple[NDArray[np.float32], NDArray[np.float32]]

MAX_SIDE = 1 << 16  # pixels; beyond, an image is taken for a mistake
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of R, G, B, by ITU-R BT.601
_CHANNELS: dict[Colour, tuple[int, ...]] = {"RGB": (0, 1, 2), "BGR": (2, 1, 0), "grey": (0,)}


@dataclass(frozen=True)
class Prepared:
    """Images as the model takes them.

    `tensor`: [n, *plan.shape] of the plan's dtype, C-contiguous. `placements`: where each source image lies in it.
    """

    tensor: Array
    placements: tuple[Placement, ...]


def prepare(plan: ImagePlan, images: Any) -> Prepared:
    """Images by the plan: one uint8 [h, w, 3] RGB or [h, w] grey, a list of such of any sizes, or uint8 [n, h, w, 3].

    Every image is computed by itself, in float32 and in a fixed order, so the same pixels give the same bits in
    training and on any device. Resized pixels are not rounded. Raises BadDataError.
    """
    given = as_images(images)
    tensor = np.empty((len(given), *plan.shape), plan.dtype)
    linear = _linear(plan)
    placements = tuple(_prepare_one(plan, linear, image, into) for image, into in zip(given, tensor, strict=True))
    return Prepared(tensor, placements)


def as_images(images: Any) -> list[Image]:
    """What was given, as a list of uint8 [h, w, 3] or [h, w]. Raises BadDataError naming what is wrong."""
    several = isinstance(images, Sequence) and not isinstance(images, str | bytes)
    if not several and not (isinstance(images, np.ndarray) and images.ndim == 4):
        images = [images]
    if len(images) == 0:
        raise BadDataError("there is no image")
    return [_checked(image) for image in images]


def _checked(image: Any) -> Image:
    wanted = "expected uint8 of shape (h, w, 3), RGB, or (h, w), grey"
    if not isinstance(image, np.ndarray):
        raise BadDataError(f"an image is a {type(image).__name__}; {wanted}", hint="np.asarray(image)")
    if image.dtype != np.uint8:
        raise BadDataError(f"an image is {image.dtype}; {wanted}", hint="pixels are 0 to 255")
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise BadDataError(f"an image has the shape {image.shape}; {wanted}")
    if not all(1 <= side <= MAX_SIDE for side in image.shape[:2]):
        raise BadDataError(f"an image has the shape {image.shape}; sides are 1 to {MAX_SIDE} pixels")
    return image


def _prepare_one(plan: ImagePlan, linear: _Linear, image: Image, into: Array) -> Placement:
    """Write the image to `into`, of the plan's shape and dtype."""
    height, width = image.shape[:2]
    placed = place(plan, height, width)
    (top, rows), (left, columns) = _window(placed.top, plan.size[0]), _window(placed.left, plan.size[1])
    new_tall, new_wide = placed.resized
    down = _taps(plan, height, new_tall, rows)
    across = _taps(plan, width, new_wide, columns)
    resized = resize(_in_channels(plan, image), down, across)
    planes = into if plan.layout == "NCHW" else into.transpose(2, 0, 1)
    tall, wide = resized.shape[1:]
    inside = planes[:, top : top + tall, left : left + wide]
    if inside.shape != planes.shape:
        planes[:] = _finish(plan, linear, np.full((1, 1, 1), plan.pad, np.float32))
    inside[:] = _finish(plan, linear, resized)
    return placed


def _window(offset: int, size: int) -> tuple[int, slice]:
    """Where the resized image begins in the input, and which part of it shows."""
    return max(offset, 0), slice(max(-offset, 0), max(-offset, 0) + size)


def _taps(plan: ImagePlan, source: int, target: int, shown: slice) -> Taps:
    return make_taps(plan.interpolation, source, target).part(shown.start, shown.stop - shown.start)


def _in_channels(plan: ImagePlan, image: Image) -> Array:
    """The image as [h, w, 3] or, where it is or becomes grey, [h, w, 1]."""
    if image.ndim == 2:
        return image[:, :, None]
    if plan.colour != "grey":
        return image
    red, green, blue = (image[:, :, channel] * _LUMA[channel] for channel in range(3))
    return np.asarray((red + green + blue)[:, :, None])


def _finish(plan: ImagePlan, linear: _Linear, pixels: NDArray[np.float32]) -> Array:
    """Pixels [3 or 1, …] as values of the tensor: a multiplication, an addition, and rounding for integers."""
    factors, offsets = linear
    values = np.empty((plan.channels, *pixels.shape[1:]), np.float32)
    for channel, plane in enumerate(_CHANNELS[plan.colour]):
        np.multiply(pixels[plane if len(pixels) == 3 else 0], factors[channel], out=values[channel])
        values[channel] += offsets[channel]
    if plan.dtype in ("float32", "float16"):
        return values
    limits = np.iinfo(plan.dtype)
    return np.clip(np.rint(values), limits.min, limits.max)


def _linear(plan: ImagePlan) -> _Linear:
    """(pixel * scale - mean) / std as pixel * factor + offset, a channel: float32 [c] each."""
    default = 1 / 255 if plan.dtype in ("float32", "float16") else 1.0
    scale = default if plan.scale is None else plan.scale
    mean = np.broadcast_to(np.array(plan.mean or (0.0,), np.float64), (plan.channels,))
    std = np.broadcast_to(np.array(plan.std or (1.0,), np.float64), (plan.channels,))
    return (scale / std).astype(np.float32), (-mean / std).astype(np.float32)
