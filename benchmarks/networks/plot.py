"""The ratios as a picture: a group of bars a net, and the goals as lines across them."""

from __future__ import annotations

import io

from benchmarks.networks.goals import FP32_RATIO, OURS, OURS_FP32, Ratio, best_peer, ratio
from benchmarks.networks.records import Result

_BARS = (
    ("fp32 to the best fp32 backend", "#1b4f72"),
    ("chosen to the best peer", "#2e86c1"),
)


def plot(result: Result) -> bytes | None:
    """The picture as PNG; None where matplotlib is not installed or nothing was measured."""
    groups = _groups(result)
    if not any(one for pair in groups.values() for one in pair):
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    width = 0.8 / len(_BARS)
    figure = Figure(figsize=(max(6, 1.1 * len(groups) + 1), 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for i, (label, colour) in enumerate(_BARS):
        bars = [(place + (i - 0.5) * width, pair[i]) for place, pair in enumerate(groups.values())]
        shown = [(place, one.value) for place, one in bars if one is not None]
        axes.bar([place for place, _ in shown], [value for _, value in shown], width, label=label, color=colour)
        if i == 0:
            for place, _ in shown:
                axes.hlines(FP32_RATIO, place - width / 2, place + width / 2, color="#c0392b", linewidth=1.5)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel("times as fast as the best peer")
    axes.set_title(f"{result.machine.cpu}, one thread, batch 1, {result.date} (red: the fp32 goal)", fontsize=9)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _groups(result: Result) -> dict[str, tuple[Ratio | None, Ratio | None]]:
    found = {}
    for info in result.nets:
        backend = best_peer(result, info.name, precisions=("fp32",), backends=True)
        found[info.name] = (
            ratio(result, info.name, OURS_FP32, backend),
            ratio(result, info.name, OURS, best_peer(result, info.name)),
        )
    return {name: pair for name, pair in found.items() if pair != (None, None)}
