"""Layers ranked by what int8 costs them."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from outrider.compiler.passes.int8 import Calibration, calibrate, prepare, quantise
from outrider.compiler.passes.mixed import keep_sensitive, rank, relative_error, run_feeds
from outrider.runtime.errors import BadDataError, BadInputError, UnsupportedError


@pytest.fixture(scope="module")
def feeds(graphs: ModuleType) -> list[dict[str, np.ndarray]]:
    return graphs.images(8)


@pytest.fixture(scope="module")
def calibration(graphs: ModuleType, feeds: Any) -> Calibration:
    return calibrate(prepare(graphs.convnet(), feeds))


def errors(calibration: Calibration, feeds: Any, count: int) -> dict[tuple[str, ...], float]:
    """The error of the int8 model, with each choice of so many layers kept in float32."""
    wanted = run_feeds(calibration.data, feeds)
    found = {}
    for kept in itertools.combinations(calibration.layers, count):
        made = quantise(calibration, exclude=kept)
        found[tuple(sorted(kept))] = relative_error(run_feeds(made.SerializeToString(), feeds), wanted)
    return found


def test_keeping_the_first_of_the_ranking_beats_most_other_choices(calibration: Calibration, feeds: Any) -> None:
    ranking = rank(calibration, feeds)
    assert ranking.complete
    measured = [one.error for one in ranking.layers if one.error is not None]
    assert measured == sorted(measured, reverse=True)
    assert {one.layer for one in ranking.layers} == set(calibration.layers)
    wanted = run_feeds(calibration.data, feeds)
    for count in (1, 2, 3):
        chosen = errors(calibration, feeds, count)
        mine = chosen[tuple(sorted(one.layer for one in ranking.layers[:count]))]
        assert mine < np.median(list(chosen.values()))
        kept = keep_sensitive(calibration, ranking, count).SerializeToString()
        assert relative_error(run_feeds(kept, feeds), wanted) == mine


def test_a_layer_that_int8_breaks_is_found(graphs: ModuleType, feeds: Any) -> None:
    net = graphs.convnet()
    for tensor in net.graph.initializer:
        if tensor.name == "w3":  # one large weight in each channel leaves few steps to the others
            values = graphs.constants(net)["w3"].copy()
            values[:, 0] = 400
            tensor.raw_data = values.tobytes()
        elif tensor.name == "w2":  # ... and is for a channel that is always 0
            values = graphs.constants(net)["w2"].copy()
            values[0] = 0
            tensor.raw_data = values.tobytes()
    ranking = rank(calibrate(prepare(net, feeds)), feeds)
    assert ranking.layers[0].layer == "pointwise"
    assert ranking.layers[0].error > 2 * ranking.layers[1].error  # type: ignore[operator]


def test_no_more_than_asked_are_measured_and_progress_told(calibration: Calibration, feeds: Any) -> None:
    seen: list[tuple[int, int]] = []
    ranking = rank(calibration, feeds, most=2, progress=lambda *at: seen.append(at))
    assert seen == [(1, 4), (2, 4)]
    assert not ranking.complete
    assert [one.error is None for one in ranking.layers] == [False, False, True, True]
    assert min(one.rounding for one in ranking.layers[:2]) >= max(one.rounding for one in ranking.layers[2:])


def test_what_cannot_be_ranked_or_kept(graphs: ModuleType, calibration: Calibration, feeds: Any) -> None:
    with pytest.raises(BadDataError, match="no calibration feeds"):
        rank(calibration, [])
    ranking = rank(calibration, feeds, most=1)
    with pytest.raises(BadInputError, match="-1 layers"):
        keep_sensitive(calibration, ranking, -1)
    with pytest.raises(UnsupportedError, match="all 4 layers would stay in float32"):
        keep_sensitive(calibration, ranking, 4)


def test_errors_are_relative():
    one = [[np.float32([3, 4]), np.array([1, 2, 3])]]
    assert relative_error(one, one) == 0
    assert relative_error([[np.float32([3, 4.5]), np.array([1, 2, 3])]], one) == pytest.approx(0.1)
    assert relative_error([[np.float32([3, 4]), np.array([1, 2, 4])]], one) == pytest.approx(1 / 3)
    assert relative_error([[np.float32([3, np.nan]), np.array([1, 2, 3])]], one) == np.inf
    assert relative_error([[np.float32([3]), np.array([1, 2, 3])]], one) == np.inf
    assert relative_error([[np.zeros(2)]], [[np.zeros(2)]]) == 0
