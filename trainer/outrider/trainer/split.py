"""Splitting rows in order of time, so that a model is always judged on rows newer than those it was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadDataError
from outrider.trainer.data.table import Table
from outrider.trainer.recipe import Recipe, Split, seconds


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Positions in a table sorted by time: `history` < `train` < `valid` < `test`."""

    history: slice
    train: slice
    valid: slice
    test: slice

    def describe(self) -> str:
        """The sizes in words."""
        return ", ".join(f"{name} {part.stop - part.start}" for name, part in vars(self).items())


def rows_until(table: Table, recipe: Recipe, until: float | None) -> Table:
    """The rows older than `until` (seconds since the epoch, UTC), sorted by time, that the window leaves.

    Rows without a time are refused. Raises BadDataError, also where no row is left.
    """
    name = recipe.split.time
    if not np.isfinite(table[name]).all():
        raise BadDataError(f"the time column {name!r} is empty in {int((~np.isfinite(table[name])).sum())} rows")
    kept = table.sorted_by(name)
    if until is not None:
        kept = kept.take(kept[name] < until)
    if recipe.split.window is not None and len(kept) > 0:
        kept = kept.take(kept[name] > kept[name][-1] - seconds(recipe.split.window))
    if len(kept) == 0:
        raise BadDataError("no rows are left to train on", hint="is the cutoff before the first row?")
    return kept


def split(table: Table, recipe: Recipe) -> Parts:
    """Cut a table sorted by time. Raises BadDataError where a part would be empty."""
    rules, times = recipe.split, table[recipe.split.time]
    n = len(times)
    test = _back_from(n, rules.test, times, n)
    valid = _back_from(test, rules.valid, times, n)
    train = int(rules.history * valid)
    parts = Parts(history=slice(0, train), train=slice(train, valid), valid=slice(valid, test), test=slice(test, n))
    empty = [name for name, part in vars(parts).items() if part.stop <= part.start and not _may_be_empty(name, rules)]
    if empty:
        raise BadDataError(f"the split leaves no {empty[0]} rows of {n}: {parts.describe()}")
    return parts


def weights(times: NDArray[np.float64], half_life: str | None) -> NDArray[np.float32]:
    """How much each training row counts, float32 [n]: 1 for the newest, half after each half-life."""
    if half_life is None or len(times) == 0:
        return np.ones(len(times), dtype=np.float32)
    counts: NDArray[np.float32] = np.exp2((times - times[-1]) / seconds(half_life)).astype(np.float32)
    return counts


def _back_from(end: int, size: float | str, times: NDArray[np.float64], rows: int) -> int:
    """Where a part begins that ends before position `end`: a share of all rows, or a span of time."""
    if isinstance(size, str):
        if end <= 0:
            return 0
        return int(np.searchsorted(times, times[end - 1] - seconds(size), side="right"))
    return max(end - max(round(size * rows), 1), 0)


def _may_be_empty(name: str, rules: Split) -> bool:
    return name == "history" and rules.history == 0
