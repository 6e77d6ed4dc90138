"""The ratios as a picture: a group of bars a model, a bar a batch size, the goals as lines across them."""

from __future__ import annotations

from benchmarks.shared.plot import Bar, Series, picture
from benchmarks.trees.ratios import Ratio, ratios, worst
from benchmarks.trees.records import Result

_COLOURS = ("#1b4f72", "#2e86c1", "#85c1e9", "#d6eaf8")


def plot(result: Result) -> bytes | None:
    """The picture as PNG; None where matplotlib is not installed or nothing was measured."""
    groups = _groups(result)
    if not groups:
        return None
    batches = sorted({ratio.batch for group in groups.values() for ratio in group})
    series = [
        Series(
            "1 row" if batch == 1 else f"batch {batch:,}",
            _COLOURS[i % len(_COLOURS)],
            [
                Bar(place, ratio.value, ratio.goal)
                for place, group in enumerate(groups.values())
                for ratio in group
                if ratio.batch == batch
            ],
        )
        for i, batch in enumerate(batches)
    ]
    title = f"{result.machine.cpu}, one thread, {result.date} (red: the goals)"
    return picture(list(groups), series, title, log=True)


def _groups(result: Result) -> dict[str, list[Ratio]]:
    """The named models one by one, then the worst random model of each shape."""
    groups: dict[str, list[Ratio]] = {}
    random = []
    for ratio in ratios(result):
        if ratio.case != ratio.shape and len(ratio.shape) == 1:
            random.append(ratio)
        else:
            groups.setdefault(ratio.case, []).append(ratio)
    for ratio in worst(random):
        groups.setdefault(f"worst {ratio.shape}", []).append(ratio)
    return groups
