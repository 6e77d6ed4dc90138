"""Profiles: what a device counts of its inputs and outputs, and the baseline they are compared with.

`learn_baseline` makes a `Baseline` from training rows; it travels in the bundle. On the device a `Counter` counts
live rows on the baseline's grid and hands out one `Window` of integers at a time; windows of several devices are
merged by exact addition. `docs/drift.md` says what is counted and what the fleet decides from it.
"""

from __future__ import annotations

from outrider.runtime.profile.baseline import (
    Baseline,
    FeatureGrid,
    Movement,
    decode_baseline,
    encode_baseline,
)
from outrider.runtime.profile.counter import Counter
from outrider.runtime.profile.grid import BINS, LEVELS, SCORE_BINS, score_bin
from outrider.runtime.profile.learn import learn_baseline
from outrider.runtime.profile.tap import ProfileTap, scores_of
from outrider.runtime.profile.window import Window, decode_window, encode_window, merge

__all__ = [
    "BINS",
    "LEVELS",
    "SCORE_BINS",
    "Baseline",
    "Counter",
    "FeatureGrid",
    "Movement",
    "ProfileTap",
    "Window",
    "decode_baseline",
    "decode_window",
    "encode_baseline",
    "encode_window",
    "learn_baseline",
    "merge",
    "score_bin",
    "scores_of",
]
