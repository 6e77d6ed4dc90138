"""Ratios as a picture: groups of bars, a colour a series, the goals as lines across them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A ratio in the group at a place, and its goal, where there is one."""

    place: int
    value: float
    goal: float | None


@dataclass(frozen=True)
class Series:
    """The bars of one colour."""

    label: str
    colour: str
    bars: Sequence[Bar]


def picture(groups: Sequence[str], series: Sequence[Series], title: str, *, log: bool = False) -> bytes | None:
    """The picture as PNG; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    width = 0.8 / len(series)
    figure = Figure(figsize=(max(6, 1.1 * len(groups) + 1), 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for i, one in enumerate(series):
        places = [bar.place + (i - (len(series) - 1) / 2) * width for bar in one.bars]
        axes.bar(places, [bar.value for bar in one.bars], width, label=one.label, color=one.colour)
        for place, bar in zip(places, one.bars, strict=True):
            if bar.goal is not None:
                axes.hlines(bar.goal, place - width / 2, place + width / 2, color="#c0392b", linewidth=1.5)
    axes.axhline(1, color="black", linewidth=0.8)
    if log:
        axes.set_yscale("log")
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel("times as fast as the best peer")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
