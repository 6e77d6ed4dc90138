"""Start times: weights that add up to at most one, few starts, and none far from any moment."""

from __future__ import annotations

import numpy as np
import pytest

from outrider.fleet.drift.starts import MAX_STARTS, log_cash, log_weights, to_drop


@pytest.mark.parametrize("opened", [1, 2, 10, 500])
def test_weights_and_cash_add_up_to_one(opened: int) -> None:
    assert np.exp(log_weights(range(1, opened + 1))).sum() + np.exp(log_cash(opened)) == pytest.approx(1.0)


def test_starts_stay_few_and_well_spread() -> None:
    kept: list[int] = []
    for opened in range(1, 5001):
        kept.append(opened)
        drop = to_drop(kept, opened)
        if drop is not None:
            del kept[drop]
        assert len(kept) <= MAX_STARTS
        assert kept[0] == 1
        assert kept[-1] == opened
    ages = 5001 - np.array(kept)
    assert ages[-1] == 1
    assert (ages[:-1] / ages[1:]).max() < 3
