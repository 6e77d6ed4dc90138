"""The candidates as points: time against error or size, and which of them nothing beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from outrider.runtime.bundle import CandidateRecord, Manifest
from outrider.runtime.errors import BadInputError

Against = Literal["error", "size"]


@dataclass(frozen=True)
class Point:
    """A candidate. `x` is its time, or its size where nothing was measured; `on_front`: nothing beats it in both."""

    name: str
    x: float
    y: float
    rank: int | None
    on_front: bool


@dataclass(frozen=True)
class Chart:
    """Points with what their axes are, in words with units."""

    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]


def read_points(manifest: Manifest, against: Against | None = None) -> Chart:
    """The candidates that can be placed; less is better on both axes.

    `x`: the median CPU time in us of the smallest batch, or of what was not measured the size. `y`: the relative L2
    error, or the largest absolute one where that is all there is; or the size in bytes. `against` None: the error
    where it differs, else the size. Raises BadInputError where no candidate can be placed.
    """
    tried = [one for one in manifest.candidates if one.size is not None and one.parity is not None]
    timed = [one for one in tried if one.measured]
    shown = timed or tried
    if not shown:
        raise BadInputError(
            "the bundle records no candidate that was measured or verified, so there is nothing to plot"
        )
    if against is None:
        against = "size" if timed and len({error_of(one) for one in shown}) == 1 else "error"
    if against == "size" and not timed:
        raise BadInputError("no candidate of the bundle was measured, so there is no time to plot against size")
    # All candidates of a search were measured at the same batch sizes, but for those that took too long.
    batch = min(found.batch for one in shown for found in one.measured) if timed else 0
    places = [(one, _time(one, batch) if timed else float(one.size or 0)) for one in shown]
    pairs = [(x, error_of(one) if against == "error" else float(one.size or 0)) for one, x in places]
    points = tuple(
        Point(one.id, x, y, one.rank, _on_front((x, y), pairs)) for (one, _), (x, y) in zip(places, pairs, strict=True)
    )
    l2 = all(one.parity is not None and one.parity.l2_error is not None for one in shown)
    error = "relative L2 error" if l2 else "largest absolute error"
    return Chart(
        title=f"{manifest.name} {manifest.version} for {manifest.target}",
        x_label=f"CPU time of a row, us (median, batch {batch})" if timed else "size, bytes (nothing was measured)",
        y_label=error if against == "error" else "size, bytes",
        points=points,
    )


def error_of(record: CandidateRecord) -> float:
    """The relative L2 error where it is known, else the largest absolute one."""
    parity = record.parity
    assert parity is not None
    return parity.max_abs_error if parity.l2_error is None else parity.l2_error


def _time(record: CandidateRecord, batch: int) -> float:
    found = next((one for one in record.measured if one.batch == batch), record.measured[0])
    return found.ns_per_row_median / 1e3


def _on_front(point: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    return not any(x <= point[0] and y <= point[1] and (x, y) != point for x, y in others)
