"""The declared feature steps of a model, carried in the manifest: one code in training and on the device."""

from __future__ import annotations

from typing import Literal

import msgspec

ColumnKind = Literal["number", "string", "time"]


class RawColumn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column of raw data. `number` is float64, `string` is str, `time` is float64 seconds since the epoch, UTC."""

    name: str
    kind: ColumnKind


class FeatureStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step: an operation of `outrider.runtime.features.STEPS` from columns to one output column.

    `params` holds constants, written in the recipe or learned in training (a vocabulary, a default).
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    params: dict[str, float | int | str | bool | tuple[str | float, ...]] = {}


class FeaturePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Raw columns -> steps in order -> a float32 matrix whose columns are `outputs`, in that order."""

    columns: tuple[RawColumn, ...]
    steps: tuple[FeatureStep, ...]
    outputs: tuple[str, ...]
