"""Ranking by evidence: which of many streams drifted at this moment, with the false discovery rate under control."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from outrider.fleet.drift.eprocess import e_value


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """One stream in a ranking; `discovered`: among those that e-BH declares drifted."""

    name: str
    e_value: float
    discovered: bool


def e_bh(log_e_values: Sequence[float], alpha: float) -> list[int]:
    """Positions that the e-BH procedure rejects, strongest first, at false discovery rate alpha.

    With N values in descending order, the first k are rejected for the largest k with e_(k) >= N / (k alpha). It
    holds under any dependence, at a fixed moment: give it current values, never running maxima.

    Reference: Wang and Ramdas: False discovery rate control with e-values (2022).
    """
    if not log_e_values:
        return []
    logs = np.asarray(log_e_values, np.float64)
    order = np.argsort(-logs, kind="stable")
    ranks = np.arange(1, len(logs) + 1)
    passing = np.flatnonzero(logs[order] >= math.log(len(logs) / alpha) - np.log(ranks))
    return [int(i) for i in order[: passing[-1] + 1]] if passing.size else []


def rank(log_e_values: Mapping[str, float], alpha: float) -> list[Ranked]:
    """All streams, strongest evidence first, each marked as discovered or not."""
    names = list(log_e_values)
    logs = [log_e_values[name] for name in names]
    found = set(e_bh(logs, alpha))
    order = sorted(range(len(names)), key=lambda i: -logs[i])
    return [Ranked(name=names[i], e_value=e_value(logs[i]), discovered=i in found) for i in order]
