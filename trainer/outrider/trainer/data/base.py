"""What every source is: a record of its settings that reads a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from outrider.runtime.features import ColumnKind
from outrider.trainer.data.table import Table
from outrider.trainer.progress import Progress


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place that rows come from. Its fields are the keys of the recipe's `[source]` beside `kind`."""

    def read(self, wanted: Mapping[str, ColumnKind], folder: Path, progress: Progress) -> Table:
        """Read the wanted columns of every row there is now, in any order.

        `folder` is the recipe's folder, which relative paths start from. Raises BadDataError naming a column that
        is missing or of the wrong kind, NotFoundError or UnavailableError where the rows cannot be had.
        """
        progress("read", f"{', '.join(wanted)} from {folder}")
        raise TypeError(f"{type(self).__name__} does not say how it reads")
