"""Steps on times: float64 seconds since the epoch, UTC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from outrider.runtime.features.base import Column, Floats, Step
from outrider.runtime.features.plan import ColumnKind

_DAY_S = 86_400.0
_YEAR_S = 365.2425 * _DAY_S
_EPOCH_WEEKDAY = 3  # 1 January 1970 was a Thursday


class Hour(Step, frozen=True, kw_only=True):
    """The hour of the day, 0 to 23, at `utc_offset_h` hours east of Greenwich."""

    takes: ClassVar[tuple[ColumnKind, ...]] = ("time",)
    utc_offset_h: float = 0.0

    def _apply(self, columns: Sequence[Column]) -> Floats:
        result: Floats = np.floor(np.mod(columns[0] + self.utc_offset_h * 3600.0, _DAY_S) / 3600.0)
        # A tiny negative time rounds up to a whole day in floating point.
        return np.where(result > 23.0, 0.0, result)


class Weekday(Step, frozen=True, kw_only=True):
    """The day of the week, Monday 0 to Sunday 6, at `utc_offset_h` hours east of Greenwich."""

    takes: ClassVar[tuple[ColumnKind, ...]] = ("time",)
    utc_offset_h: float = 0.0

    def _apply(self, columns: Sequence[Column]) -> Floats:
        days = np.floor((columns[0] + self.utc_offset_h * 3600.0) / _DAY_S)
        result: Floats = np.mod(days + _EPOCH_WEEKDAY, 7.0)
        return result


class AgeYears(Step, frozen=True, kw_only=True):
    """Years from the first time to the second, of 365.2425 days; negative where the second is earlier."""

    takes: ClassVar[tuple[ColumnKind, ...]] = ("time", "time")

    def _apply(self, columns: Sequence[Column]) -> Floats:
        born, now = columns
        result: Floats = (now - born) / _YEAR_S
        return result
