"""Boxes find their way back to the source image."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from outrider.runtime.images import ImagePlan
from outrider.runtime.images.placement import place

sides = st.integers(1, 3000)
plans = st.builds(
    ImagePlan,
    input=st.just("x"),
    size=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    fit=st.sampled_from(["stretch", "letterbox", "crop"]),
    align=st.sampled_from(["centre", "corner"]),
)


@given(plan=plans, height=sides, width=sides, shares=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_round_trip(plan: ImagePlan, height: int, width: int, shares: list[float]) -> None:
    placed = place(plan, height, width)
    x1, x2 = sorted((shares[0] * width, shares[1] * width))
    y1, y2 = sorted((shares[2] * height, shares[3] * height))
    boxes = np.array([[x1, y1, x2, y2]])
    assert np.abs(placed.to_source(placed.to_input(boxes)) - boxes).max() < 1e-6


@given(plan=plans, height=sides, width=sides)
def test_geometry(plan: ImagePlan, height: int, width: int) -> None:
    placed = place(plan, height, width)
    ((left, top, right, bottom),) = placed.to_input(np.array([[0.0, 0.0, width, height]]))
    tall, wide = plan.size
    if plan.fit == "crop":
        assert left <= 0
        assert top <= 0
        assert right >= wide - 1e-6
        assert bottom >= tall - 1e-6
    else:
        assert left >= 0
        assert top >= 0
        assert right <= wide + 1e-6
        assert bottom <= tall + 1e-6
    if plan.fit == "letterbox":  # what is wanted is one scale for both axes; whole pixels cost at most half of one
        ratio = min(tall / height, wide / width)
        assert abs(placed.scale_y - ratio) * height <= max(0.5, 1 - ratio * height) + 1e-6
        assert abs(placed.scale_x - ratio) * width <= max(0.5, 1 - ratio * width) + 1e-6


def test_the_usual_letterbox() -> None:
    placed = place(ImagePlan(input="x", size=(640, 640), fit="letterbox"), 720, 1280)
    assert (placed.scale_x, placed.scale_y, placed.left, placed.top) == (0.5, 0.5, 0, 140)
    assert placed.to_source(np.array([[0.0, 140, 640, 500]])).tolist() == [[0, 0, 1280, 720]]
    assert placed.to_source(np.array([[-5.0, 0, 9999, 200]])).tolist() == [[0, 0, 1280, 120]]
