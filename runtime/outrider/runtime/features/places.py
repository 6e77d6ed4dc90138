"""Steps on places: latitudes and longitudes in degrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np

from outrider.runtime.errors import BadDataError
from outrider.runtime.features.base import Column, Floats, Sample, Step
from outrider.runtime.features.plan import ColumnKind

_EARTH_RADIUS_KM = 6371.0088


class Haversine(Step, frozen=True, kw_only=True):
    """Great-circle distance in kilometres between (lat, lng) and (lat, lng), on a sphere of 6371.0088 km."""

    takes: ClassVar[tuple[ColumnKind, ...]] = ("number", "number", "number", "number")

    def _apply(self, columns: Sequence[Column]) -> Floats:
        return _great_circle_km(*columns)


class DistanceFrom(Step, frozen=True, kw_only=True):
    """Great-circle distance in kilometres from the place (`lat`, `lng`), which is learned where it is not declared.

    The learned place is the point under the mean direction of the training rows, so it holds across the date line.
    """

    takes: ClassVar[tuple[ColumnKind, ...]] = ("number", "number")
    lat: float | None = None
    lng: float | None = None

    def fit(self, sample: Sample) -> DistanceFrom:
        """Learn the place, where it was not declared."""
        if (self.lat is None) != (self.lng is None):
            raise BadDataError("distance_from needs both lat and lng, or neither")
        if self.lat is not None:
            return self
        lat, lng = np.radians(sample.columns[0]), np.radians(sample.columns[1])
        known = np.isfinite(lat) & np.isfinite(lng)
        if not known.any():
            raise BadDataError("distance_from cannot learn a place: no row has both a latitude and a longitude")
        lat, lng = lat[known], lng[known]
        x, y, z = np.mean(np.cos(lat) * np.cos(lng)), np.mean(np.cos(lat) * np.sin(lng)), np.mean(np.sin(lat))
        centre_lat = round(float(np.degrees(np.arctan2(z, np.hypot(x, y)))), 4)
        centre_lng = round(float(np.degrees(np.arctan2(y, x))), 4)
        return msgspec.structs.replace(self, lat=centre_lat, lng=centre_lng)

    def _apply(self, columns: Sequence[Column]) -> Floats:
        if self.lat is None or self.lng is None:
            raise BadDataError("distance_from has no place", hint="fit the plan, or declare lat and lng")
        return _great_circle_km(columns[0], columns[1], np.float64(self.lat), np.float64(self.lng))


def _great_circle_km(lat1: Floats, lng1: Floats, lat2: Floats | np.float64, lng2: Floats | np.float64) -> Floats:
    """The haversine formula; an argument that is not finite gives NaN."""
    a, b = np.radians(lat1), np.radians(lat2)
    half_lat, half_lng = (b - a) / 2, (np.radians(lng2) - np.radians(lng1)) / 2
    h = np.sin(half_lat) ** 2 + np.cos(a) * np.cos(b) * np.sin(half_lng) ** 2
    result: Floats = 2 * _EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(h, 0.0, 1.0)))
    return result
