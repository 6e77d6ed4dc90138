"""Raw columns: checking what was given, and bringing it into the form that steps work on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadDataError
from outrider.runtime.features.base import Column, Floats
from outrider.runtime.features.plan import ColumnKind, FeaturePlan

#: Raw data as it is given: one array [n] a column, by name.
RawTable: TypeAlias = Mapping[str, NDArray[Any]]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_WANTED: dict[ColumnKind, str] = {
    "number": "numbers (float, integer or bool)",
    "string": 'strings (a numpy str array, or objects that are str or None; None and "" are missing)',
    "time": "times (float seconds since the epoch, UTC, or ISO 8601 strings)",
}


def check_raw(plan: FeaturePlan, raw: RawTable) -> None:
    """Check that `raw` holds exactly the plan's columns, each one-dimensional, of one length and of its kind.

    Raises BadDataError naming the column and what was expected.
    """
    clean_columns(plan, raw)


def clean_columns(plan: FeaturePlan, raw: RawTable) -> dict[str, Column]:
    """The plan's columns, checked and converted: float64 for `number` and `time`, str objects for `string`.

    A missing number or time is NaN; a missing string is None, given as None, NaN or "".

    Raises BadDataError like `check_raw`.
    """
    names = [column.name for column in plan.columns]
    missing = [name for name in names if name not in raw]
    if missing:
        raise BadDataError(f"the raw column {missing[0]!r} is missing", hint=f"expected {', '.join(names)}")
    extra = sorted(set(raw) - set(names))
    if extra:
        raise BadDataError(f"there is no raw column {extra[0]!r}", hint=f"expected {', '.join(names)}")
    clean: dict[str, Column] = {}
    rows: int | None = None
    for column in plan.columns:
        values = np.asarray(raw[column.name])
        if values.ndim != 1:
            raise BadDataError(f"the raw column {column.name!r} has shape {values.shape}, expected [rows]")
        if rows is not None and len(values) != rows:
            raise BadDataError(f"the raw column {column.name!r} has {len(values)} rows, expected {rows} as the others")
        rows = len(values)
        clean[column.name] = clean_column(column.name, column.kind, values)
    return clean


def clean_column(name: str, kind: ColumnKind, values: NDArray[Any]) -> Column:
    """One column [n] in the form that steps work on. Raises BadDataError naming it."""
    if kind == "string":
        return _strings(name, values)
    if kind == "time" and values.dtype.kind in "OUM":
        return _times(name, values)
    return _numbers(name, kind, values)


def _numbers(name: str, kind: ColumnKind, values: NDArray[Any]) -> Floats:
    if values.dtype.kind in "fiub":
        return values.astype(np.float64)
    if values.dtype.kind == "O":  # None stands for a missing number, as JSON's null does
        cleaned = [float("nan") if value is None else value for value in values.tolist()]
        bad = next((value for value in cleaned if not isinstance(value, (int, float, np.number, np.bool_))), None)
        if bad is None:
            try:
                return np.array(cleaned, dtype=np.float64)
            except OverflowError as e:
                raise BadDataError(f"the raw column {name!r} holds an integer beyond float64") from e
        raise BadDataError(f"the raw column {name!r} holds {bad!r}, expected {_WANTED[kind]}")
    raise BadDataError(f"the raw column {name!r} is {values.dtype}, expected {_WANTED[kind]}")


def _strings(name: str, values: NDArray[Any]) -> Column:
    if values.dtype.kind not in "OU":
        raise BadDataError(f"the raw column {name!r} is {values.dtype}, expected {_WANTED['string']}")
    cleaned = np.empty(len(values), dtype=object)
    for row, value in enumerate(values.tolist()):
        if isinstance(value, str):
            cleaned[row] = value or None
        elif value is not None and not _is_nan(value):
            raise BadDataError(f"the raw column {name!r} holds {value!r} in row {row}, expected {_WANTED['string']}")
    return cleaned


def _is_nan(value: object) -> bool:
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def _times(name: str, values: NDArray[Any]) -> Floats:
    if values.dtype.kind == "M":
        return _from_datetime64(values)
    if values.dtype.kind == "U" and len(values) > 0 and _plain_iso(values):
        try:
            return _from_datetime64(values.astype("datetime64[us]"))
        except ValueError:
            pass  # the slow way below names the row
    return np.array([_seconds(name, row, value) for row, value in enumerate(values.tolist())], dtype=np.float64)


def _from_datetime64(values: NDArray[Any]) -> Floats:
    microseconds = values.astype("datetime64[us]")
    return np.where(np.isnat(microseconds), np.nan, microseconds.astype(np.int64) / 1e6)


def _plain_iso(values: NDArray[Any]) -> bool:
    """Whether every string is exactly YYYY-MM-DDTHH:MM:SS, without a zone, so that numpy reads it as we do."""
    if values.dtype.itemsize != 19 * 4:
        return False
    grid = np.ascontiguousarray(values).view(np.uint32).reshape(len(values), 19)
    digits = [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18]
    numeric = grid[:, digits]
    marks = (grid[:, [4, 7]] == ord("-")).all() and (grid[:, [13, 16]] == ord(":")).all()
    gap = np.isin(grid[:, 10], (ord(" "), ord("T"))).all()
    return bool(marks and gap and (numeric >= ord("0")).all() and (numeric <= ord("9")).all())


def _seconds(name: str, row: int, value: object) -> float:
    """One time as seconds since the epoch; a time without a zone is UTC; None, NaN and "" are missing."""
    if value is None or value == "" or _is_nan(value):
        return float("nan")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        text = value.strip()
        try:
            moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in "zZ" else text)
        except ValueError:
            moment = None
        if moment is not None:
            aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
            return (aware - _EPOCH) // timedelta(microseconds=1) / 1e6
    raise BadDataError(f"the raw column {name!r} holds {value!r} in row {row}, expected {_WANTED['time']}")


def parse_time(text: str, *, what: str = "time") -> float:
    """An ISO 8601 text as float seconds since the epoch, UTC. Raises BadDataError naming `what`."""
    try:
        seconds = _seconds(what, 0, text)
    except BadDataError:
        seconds = float("nan")
    if np.isnan(seconds):
        raise BadDataError(f"{what} {text!r} is not a time", hint="write it as 2019-05-01 or 2019-05-01T12:00:00Z")
    return seconds
