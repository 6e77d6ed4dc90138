"""Drift: tests with a stated false-alarm bound on the windows that devices send. `docs/drift.md` explains them."""

from __future__ import annotations

from outrider.fleet.drift.cbpe import AccuracyEstimate, estimate_accuracy
from outrider.fleet.drift.ebh import Ranked, e_bh, rank
from outrider.fleet.drift.monitor import DriftSignal, FeatureMonitor, MonitorState
from outrider.fleet.drift.performance import Breach, FloorState, FloorTest

__all__ = [
    "AccuracyEstimate",
    "Breach",
    "DriftSignal",
    "FeatureMonitor",
    "FloorState",
    "FloorTest",
    "MonitorState",
    "Ranked",
    "e_bh",
    "estimate_accuracy",
    "rank",
]
