"""A table of raw rows: one clean array a column."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.durable import storage_errors, whole_file
from outrider.runtime.errors import BadDataError
from outrider.runtime.features import ColumnKind
from outrider.runtime.features.columns import clean_column

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """Columns [n] by name: float64 for `number` and `time` (seconds since the epoch, UTC), str objects for `string`."""

    columns: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise BadDataError(f"the columns differ in length: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def take(self, rows: NDArray[Any] | slice) -> Table:
        """The rows at these positions, or where this mask is true."""
        return Table({name: values[rows] for name, values in self.columns.items()})

    def select(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Some columns, as raw data for `outrider.runtime.features.compute`."""
        return {name: self.columns[name] for name in names}

    def replace(self, **columns: NDArray[Any]) -> Table:
        """This table with some columns exchanged."""
        return Table({**self.columns, **columns})

    def sorted_by(self, name: str) -> Table:
        """The rows in rising order of a column; rows that tie keep their order."""
        return self.take(np.argsort(self.columns[name], kind="stable"))

    def digest(self) -> str:
        """SHA-256 over names, order and content, in hex: equal tables have equal digests."""
        digest = hashlib.sha256()
        for name, values in self.columns.items():
            digest.update(f"{name}\0{len(values)}\0".encode())
            if values.dtype == object:
                cells = ("\0" if cell is None else f"{len(cell)}:{cell}" for cell in values.tolist())
                digest.update("\0".join(cells).encode("utf-8", "surrogatepass"))
            else:
                digest.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
        return digest.hexdigest()


def concatenate(tables: Sequence[Table]) -> Table:
    """The rows of several tables of the same columns, one after another."""
    names = list(tables[0].columns)
    return Table({name: np.concatenate([table.columns[name] for table in tables]) for name in names})


def from_frame(frame: pd.DataFrame, wanted: Mapping[str, ColumnKind]) -> Table:
    """The wanted columns of a data frame, checked and converted. Raises BadDataError naming the column.

    Strings are read as they stand; numbers and booleans where a string is wanted become their text, so that a card
    number is `"32261"` whether the file's reader took it for a number or not.
    """
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        raise BadDataError(
            f"the data has no column {missing[0]!r}", hint=f"it has {', '.join(map(str, frame.columns))}"
        )
    return Table({name: _column(name, kind, frame[name].to_numpy()) for name, kind in wanted.items()})


def _column(name: str, kind: ColumnKind, values: NDArray[Any]) -> NDArray[Any]:
    if kind == "string" and values.dtype.kind in "iub":
        values = values.astype(str).astype(object)
    return clean_column(name, kind, values)


def write_csv(table: Table, path: Path, *, times: Sequence[str] = ()) -> None:
    """Write a table as CSV, atomically; the columns in `times` as ISO 8601, UTC. `.gz` compresses."""
    import pandas as pd

    frame = pd.DataFrame(dict(table.columns))
    for name in times:
        moments = pd.to_datetime(np.round(table[name] * 1e6).astype(np.int64), unit="us")
        frame[name] = moments.strftime("%Y-%m-%dT%H:%M:%S.%f")
    with storage_errors(f"write {path}"), whole_file(path) as file:
        frame.to_csv(file, index=False, compression="gzip" if path.suffix == ".gz" else None)
