"""The ratios as a picture: a group of bars a model, a bar a batch size, the goals as lines across them."""

from __future__ import annotations

import io

from benchmarks.trees.ratios import Ratio, ratios, worst
from benchmarks.trees.records import Result

_COLOURS = ("#1b4f72", "#2e86c1", "#85c1e9", "#d6eaf8")


def plot(result: Result) -> bytes | None:
    """The picture as PNG; None where matplotlib is not installed or nothing was measured."""
    groups = _groups(result)
    if not groups:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    batches = sorted({ratio.batch for group in groups.values() for ratio in group})
    width = 0.8 / len(batches)
    figure = Figure(figsize=(max(6, 1.1 * len(groups) + 1), 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for i, batch in enumerate(batches):
        bars = [
            (position, ratio)
            for position, group in enumerate(groups.values())
            for ratio in group
            if ratio.batch == batch
        ]
        places = [position + (i - (len(batches) - 1) / 2) * width for position, _ in bars]
        label = "1 row" if batch == 1 else f"batch {batch:,}"
        axes.bar(places, [ratio.value for _, ratio in bars], width, label=label, color=_COLOURS[i % len(_COLOURS)])
        for place, (_, ratio) in zip(places, bars, strict=True):
            if ratio.goal is not None:
                axes.hlines(ratio.goal, place - width / 2, place + width / 2, color="#c0392b", linewidth=1.5)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel("times as fast as the best peer")
    axes.set_title(f"{result.machine.cpu}, one thread, {result.date} (red: the goals)", fontsize=9)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


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
