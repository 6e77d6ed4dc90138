"""Splitting by time: nothing newer in training than what it is judged on, and nothing lost."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.runtime.errors import BadDataError
from outrider.trainer.data.table import Table
from outrider.trainer.recipe import Recipe, Split, load_recipe
from outrider.trainer.split import rows_until, split, weights

DAY = 86_400.0


def recipe(**rules) -> Recipe:
    return msgspec.structs.replace(load_recipe("breast_cancer").recipe, split=Split(time="t", **rules))


def table(times) -> Table:
    return Table({"t": np.array(times, dtype=np.float64), "n": np.arange(len(times), dtype=np.float64)})


def test_shares_cut_by_position():
    parts = split(table(range(100)), recipe(history=0.25, valid=0.1, test=0.1))
    assert parts.sizes() == {"history": 20, "train": 60, "valid": 10, "test": 10}
    assert parts.history.max() < parts.train.min()
    assert parts.train.max() < parts.valid.min()
    assert parts.valid.max() < parts.test.min()


def test_durations_cut_by_time():
    parts = split(table(np.arange(100) * DAY), recipe(valid="10d", test="5d"))
    assert parts.sizes() == {"history": 0, "train": 85, "valid": 10, "test": 5}


def test_blocks_are_spread_over_the_recent_rows_and_keep_their_part():
    rules = recipe(recent="20d", block="6h", valid=0.2, test=0.2, history=0.5)
    all_times = np.arange(0, 100, 0.05) * DAY + 1.5e9
    late, early = table(all_times), table(all_times[: len(all_times) * 9 // 10])
    new, old = split(late, rules), split(early, rules)
    recent = np.sum(all_times > all_times[-1] - 20 * DAY)
    assert len(new.test) == pytest.approx(0.2 * recent, rel=0.1)
    assert len(new.valid) == pytest.approx(0.2 * recent, rel=0.1)
    assert new.train.max() > len(late) - 20, "the newest rows are trained on too"
    assert not set(new.test) & set(old.train), "what judges the candidate never taught the champion"
    assert new.history.max() < new.train.min()


def test_a_part_without_rows_is_refused():
    with pytest.raises(BadDataError, match="no train rows"):
        split(table([0.0, 1.0, 2.0]), recipe(valid="1s", test="9s"))
    with pytest.raises(BadDataError, match=r"no (test|valid) rows"):
        split(table([0.0, 1.0, 2.0]), recipe(recent="1s", block="1d", valid=0.1, test=1e-9))
    with pytest.raises(BadDataError, match="no history rows"):
        split(table([0.0, 1.0, 2.0]), recipe(history=0.1, valid=0.3, test=0.3))


def test_the_cutoff_and_the_window():
    rows = table([3 * DAY, 1 * DAY, 2 * DAY, 4 * DAY])
    assert rows_until(rows, recipe(), 3 * DAY)["t"].tolist() == [DAY, 2 * DAY]
    assert rows_until(rows, recipe(), None)["n"].tolist() == [1, 2, 0, 3]
    assert rows_until(rows, recipe(window="36h"), None)["t"].tolist() == [3 * DAY, 4 * DAY]
    with pytest.raises(BadDataError, match="no rows are left"):
        rows_until(rows, recipe(), 1.0)
    with pytest.raises(BadDataError, match="'t' is empty in 1 rows"):
        rows_until(table([1.0, np.nan]), recipe(), None)


def test_weights_halve_and_have_mean_one():
    w = weights(np.arange(50) * DAY, "10d")
    assert w.dtype == np.float32
    assert w.mean() == pytest.approx(1.0, rel=1e-5)
    assert w[40] / w[30] == pytest.approx(2.0, rel=1e-5)
    assert (weights(np.arange(3.0), None) == 1).all()


SHARE = st.floats(0.05, 0.4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 100 * DAY), min_size=30, max_size=120), SHARE, SHARE, SHARE, st.booleans())
def test_every_row_is_in_one_part(times, history, valid, test, blocks):
    rules = {"recent": "60d", "block": "1d"} if blocks else {}
    rows = rows_until(table(times), recipe(), None)
    try:
        parts = split(rows, recipe(history=history, valid=valid, test=test, **rules))
    except BadDataError:
        return
    together = np.concatenate([parts.history, parts.train, parts.valid, parts.test])
    assert sorted(together.tolist()) == list(range(len(rows)))
    assert all((np.diff(part) > 0).all() for part in vars(parts).values())
    assert parts.history.max() < parts.held_out.min()
