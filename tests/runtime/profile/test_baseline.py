"""The baseline's file: what goes in comes out, and nothing malformed comes in; and how rows move with time."""

from __future__ import annotations

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.runtime.errors import BadBundleError
from outrider.runtime.profile import (
    Baseline,
    FeatureGrid,
    Movement,
    decode_baseline,
    encode_baseline,
    learn_baseline,
)


def make(blocks: int | None = None) -> Baseline:
    rng = np.random.default_rng(3)
    features = np.stack([rng.normal(size=4000), rng.integers(0, 7, 4000), rng.random(4000)], 1).astype(np.float32)
    features[::10, 2] = np.nan
    return learn_baseline(features, ["x", "code", "gaps"], rng.random(4000), blocks=blocks)


@pytest.mark.parametrize("blocks", [None, 16])
def test_round_trip(blocks: int | None) -> None:
    baseline = make(blocks)
    data = encode_baseline(baseline)
    again = decode_baseline(data)
    assert again == baseline
    assert again.fingerprint == baseline.fingerprint
    assert encode_baseline(again) == data


def test_the_fingerprint_follows_what_is_counted() -> None:
    baseline = make()
    other = msgspec.structs.replace(baseline, scores=tuple(reversed(baseline.scores)))
    assert other.fingerprint != baseline.fingerprint
    assert make(16).fingerprint == baseline.fingerprint


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(BadBundleError):
        decode_baseline(data)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_file_is_refused_or_whole(data: st.DataObject) -> None:
    octets = bytearray(encode_baseline(make()))
    position = data.draw(st.integers(0, len(octets) - 1))
    octets[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(octets))))
    with contextlib.suppress(BadBundleError):
        assert decode_baseline(bytes(octets[:cut])).layout.features == 3


def grid(edges: list[float], counts: list[int], name: str = "x") -> FeatureGrid:
    return FeatureGrid(
        name=name, discrete=False, edges=np.array(edges, "<f4").tobytes(), counts=np.array(counts, "<u4").tobytes()
    )


GOOD = grid([0.0, 1.0, np.inf], [0, 2, 0, 0])


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        (Baseline(rows=2, features=(GOOD, GOOD)), "twice"),
        (Baseline(rows=2, features=(GOOD,), scores=(1, 1)), "score bins"),
        (Baseline(rows=3, features=(GOOD,)), "add up"),
        (Baseline(rows=2, features=(grid([1.0, 0.0, np.inf], [0, 2, 0, 0]),)), "ascend"),
        (Baseline(rows=2, features=(grid([0.0, np.nan, np.inf], [0, 2, 0, 0]),)), "ascend"),
        (Baseline(rows=2, features=(grid([0.0, 1.0, 2.0], [0, 2, 0, 0]),)), "ascend"),
        (Baseline(rows=2, features=(grid([0.0, np.inf], [0, 2, 0]),)), "edges"),
        (Baseline(rows=2, features=(grid([0.0, 1.0, np.inf], [0, 2, 0]),)), "match"),
        (Baseline(rows=2, features=(GOOD,), movements=(Movement(rows=9, moved=(0.1, 0.1)),)), "movements"),
        (
            Baseline(rows=2, features=(GOOD,), movements=(Movement(rows=9, moved=(0.1,)),) * 2),
            "ascending",
        ),
        (Baseline(rows=2, features=(GOOD,), movements=(Movement(rows=9, moved=(1.5,)),)), "decode"),
        (Baseline(rows=2, features=()), "decode"),
    ],
)
def test_what_the_types_do_not_say_is_checked(baseline: Baseline, words: str) -> None:
    with pytest.raises(BadBundleError, match=words):
        decode_baseline(encode_baseline(baseline))


def test_rows_that_do_not_move_are_recorded_as_such() -> None:
    rng = np.random.default_rng(5)
    features = rng.normal(size=(30_000, 40)).astype(np.float32)
    baseline = learn_baseline(features, [f"f{i}" for i in range(40)], rng.random(30_000), blocks=60)
    assert [movement.rows for movement in baseline.movements] == [500, 1000, 2000, 4000]
    moved = np.array([movement.moved for movement in baseline.movements])
    assert moved.shape == (4, 41)
    assert np.mean(moved > 0) < 0.01


def test_a_daily_cycle_moves_short_spans_and_not_long_ones() -> None:
    rng = np.random.default_rng(6)
    hour = (np.arange(24_000) // 100) % 24
    features = np.stack([hour, rng.normal(size=24_000)], 1).astype(np.float32)
    movements = learn_baseline(features, ["hour", "x"], blocks=40).movements
    by_hour = [movement.moved[0] for movement in movements]
    assert [movement.rows for movement in movements] == [600, 1200, 2400, 4800]
    assert by_hour[0] > 0.6
    assert by_hour == sorted(by_hour, reverse=True)
    # 6,000 rows are two and a half days: movement does not end with the first whole day.
    assert by_hour[-1] == pytest.approx(0.1, abs=0.02)
    assert all(movement.moved[1] == 0 for movement in movements)


def test_moving_nulls_are_recorded() -> None:
    rng = np.random.default_rng(7)
    column = rng.normal(size=8000).astype(np.float32)
    column[2000:4000][rng.random(2000) < 0.5] = np.nan
    moved = learn_baseline(column[:, None], ["x"], blocks=8).movements[0].moved[0]
    assert 0.3 < moved < 0.5


def test_too_few_scores_are_not_tested() -> None:
    rng = np.random.default_rng(8)
    features = rng.normal(size=(8000, 1)).astype(np.float32)
    movements = learn_baseline(features, ["x"], rng.random(100), blocks=8 * 32).movements
    assert all(movement.moved[1] == 1.0 for movement in movements)


def test_thinned_out_scores_move_as_far_as_all_of_them() -> None:
    rng = np.random.default_rng(9)
    features = rng.normal(size=(24_000, 1)).astype(np.float32)
    scores = np.clip(rng.normal(0.5 + 0.3 * np.sin(np.arange(24_000) / 2400 * 2 * np.pi), 0.1), 0, 1)
    every = [movement.moved[1] for movement in learn_baseline(features, ["x"], scores, blocks=40).movements]
    fourth = [movement.moved[1] for movement in learn_baseline(features, ["x"], scores[::4], blocks=40).movements]
    assert every[0] > 0.4
    assert fourth == pytest.approx(every, abs=0.05)
