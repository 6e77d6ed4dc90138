"""Splitting rows in order of time, so that a model is always judged on rows newer than those it was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadDataError
from outrider.trainer.data.table import Table
from outrider.trainer.recipe import Recipe, Split, seconds

# A block's place in the golden-ratio sequence: as even as can be, and in step with no hour or weekday.
_GOLDEN = 0.6180339887498949

Positions = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Ascending positions in a table sorted by time. Every row is in one part."""

    history: Positions
    train: Positions
    valid: Positions
    test: Positions

    @property
    def held_out(self) -> Positions:
        """`valid` and `test`, in order of time."""
        return np.sort(np.concatenate([self.valid, self.test]))

    def sizes(self) -> dict[str, int]:
        """Rows by part."""
        return {name: len(part) for name, part in vars(self).items()}


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
    test, valid = _blocks(rules, times) if rules.recent is not None else _newest(rules, times)
    rest = np.flatnonzero(~(test | valid))
    first = int(np.argmax(test | valid)) if len(rest) < n else n
    history = int(rules.history * first)
    parts = Parts(history=rest[:history], train=rest[history:], valid=np.flatnonzero(valid), test=np.flatnonzero(test))
    empty = [name for name, size in parts.sizes().items() if size == 0 and (name != "history" or rules.history > 0)]
    if empty:
        raise BadDataError(f"the split leaves no {empty[0]} rows of {n}: {parts.sizes()}")
    return parts


def weights(times: NDArray[np.float64], half_life: str | None) -> NDArray[np.float32]:
    """How much each training row counts, float32 [n]: half as much after each half-life; their mean is 1."""
    if half_life is None or len(times) == 0:
        return np.ones(len(times), dtype=np.float32)
    counts = np.exp2((times - times[-1]) / seconds(half_life))
    mean_one: NDArray[np.float32] = (counts / counts.mean()).astype(np.float32)
    return mean_one


def _newest(rules: Split, times: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the newest rows (test) and of those before them (valid)."""
    position, n = np.arange(len(times)), len(times)
    test = _back_from(n, rules.test, times)
    valid = _back_from(test, rules.valid, times)
    return position >= test, (position >= valid) & (position < test)


def _blocks(rules: Split, times: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the test and valid blocks of the recent stretch."""
    assert rules.recent is not None
    assert isinstance(rules.test, float)
    assert isinstance(rules.valid, float)
    recent = times > times[-1] - seconds(rules.recent)
    place = np.mod(np.floor(times / seconds(rules.block)) * _GOLDEN, 1.0)
    return recent & (place < rules.test), recent & (place >= rules.test) & (place < rules.test + rules.valid)


def _back_from(end: int, size: float | str, times: NDArray[np.float64]) -> int:
    """Where a part begins that ends before position `end`: a share of all rows, or a span of time."""
    if isinstance(size, str):
        return int(np.searchsorted(times, times[end - 1] - seconds(size), side="right")) if end > 0 else 0
    return max(end - max(round(size * len(times)), 1), 0)
