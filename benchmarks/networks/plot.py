"""The ratios as a picture: a group of bars a net, and the goals as lines across them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.networks.goals import FP32_RATIO, OURS, OURS_FP32, Ratio, best_peer, ratio
from benchmarks.networks.records import Result
from benchmarks.shared.plot import Bar, Series, picture


def plot(result: Result) -> bytes | None:
    """The picture as PNG; None where matplotlib is not installed or nothing was measured."""
    groups = _groups(result)
    if not groups:
        return None
    fp32, chosen = zip(*groups.values(), strict=True)
    series = [
        Series("fp32 to the best fp32 backend", "#1b4f72", _bars(fp32, FP32_RATIO)),
        Series("chosen to the best peer", "#2e86c1", _bars(chosen, None)),
    ]
    title = f"{result.machine.cpu}, one thread, batch 1, {result.date} (red: the fp32 goal)"
    return picture(list(groups), series, title)


def _bars(found: Sequence[Ratio | None], goal: float | None) -> list[Bar]:
    return [Bar(place, one.value, goal) for place, one in enumerate(found) if one is not None]


def _groups(result: Result) -> dict[str, tuple[Ratio | None, Ratio | None]]:
    found = {}
    for info in result.nets:
        backend = best_peer(result, info.name, precisions=("fp32",), backends=True)
        found[info.name] = (
            ratio(result, info.name, OURS_FP32, backend),
            ratio(result, info.name, OURS, best_peer(result, info.name)),
        )
    return {name: pair for name, pair in found.items() if pair != (None, None)}
