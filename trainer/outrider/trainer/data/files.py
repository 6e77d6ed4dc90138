"""Rows from a file: CSV (also gzipped) or Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.runtime.errors import BadDataError, NotFoundError
from outrider.runtime.features import ColumnKind
from outrider.trainer.data.base import Source
from outrider.trainer.data.table import Table, from_frame
from outrider.trainer.progress import Progress

if TYPE_CHECKING:
    import pandas as pd


class CsvFile(Source, frozen=True, kw_only=True):
    """A CSV file with a header line; `path` is relative to the recipe; `.gz` is decompressed."""

    path: str

    def read(self, wanted: Mapping[str, ColumnKind], folder: Path, progress: Progress) -> Table:
        """Read the wanted columns (see `Source.read`)."""
        progress("read", self.path)
        return read_csv(folder / self.path, wanted)


class ParquetFile(Source, frozen=True, kw_only=True):
    """A Parquet file; `path` is relative to the recipe."""

    path: str

    def read(self, wanted: Mapping[str, ColumnKind], folder: Path, progress: Progress) -> Table:
        """Read the wanted columns (see `Source.read`)."""
        import pandas as pd

        progress("read", self.path)
        path = _existing(folder / self.path)
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as e:  # pyarrow's own errors are ValueErrors
            raise BadDataError(f"{path} is not a Parquet file that can be read: {e}") from e
        return from_frame(frame, wanted)


def read_csv(path: Path, wanted: Mapping[str, ColumnKind]) -> Table:
    """Read the wanted columns of a CSV file. Raises NotFoundError or BadDataError."""
    import pandas as pd

    _existing(path)
    text: dict[str, type] = {name: str for name, kind in wanted.items() if kind != "number"}
    try:
        # Only an empty cell is missing: "NA" is Namibia.
        frame: pd.DataFrame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
    except (OSError, ValueError, EOFError) as e:  # pandas' parser errors are ValueErrors
        raise BadDataError(f"{path} is not a CSV file that can be read: {e}") from e
    return from_frame(frame, wanted)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", hint="a recipe's path is relative to the recipe")
    return path
