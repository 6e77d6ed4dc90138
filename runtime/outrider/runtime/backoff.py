"""Full-jitter exponential backoff: a fleet that lost its server must not come back in one wave."""

from __future__ import annotations

import random


class Backoff:
    """The next delay is uniform in (0, min(cap, base · 2ⁿ)] seconds after n failures in a row."""

    def __init__(self, base_s: float, cap_s: float, *, rng: random.Random | None = None) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._rng = rng or random.Random()  # noqa: S311  (spreads load, guards nothing)
        self._failures = 0

    def next_s(self) -> float:
        """The delay before the next try; each call counts as one more failure."""
        ceiling: float = min(self._cap_s, self._base_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return ceiling * (1.0 - self._rng.random())

    def reset(self) -> None:
        """Start from the base again, after a success that lasted."""
        self._failures = 0
