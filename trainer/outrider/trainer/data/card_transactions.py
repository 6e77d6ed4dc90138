"""99,992 card transactions of January to August 2019, 15.2 % of them fraud: the demonstration data of evalml 0.84.0.

They are synthetic in origin: the amount decides two thirds of the fraud (everything from 90,000 on), about a hundred
stores and a thousand cards are compromised for good, and the rest is chance. About one row in a hundred cannot be
foretold by anyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from outrider.runtime.features import ColumnKind
from outrider.trainer.data.base import Source
from outrider.trainer.data.cache import PackagedFile, fetch
from outrider.trainer.data.files import read_csv
from outrider.trainer.data.table import Table
from outrider.trainer.progress import Progress

FILE = PackagedFile(
    requirement="evalml==0.84.0",
    member="evalml/demos/data/fraud_transactions.csv.gz",
    sha256="9de77ae73df5f489e7967820444dc3775a48726333412a78a41a2799a57e93d9",
    size_hint="6.6 MB",
)


class CardTransactions(Source, frozen=True, kw_only=True):
    """The card transactions; the file is fetched by pip at the first use and cached (`OUTRIDER_CACHE`)."""

    def read(self, wanted: Mapping[str, ColumnKind], folder: Path, progress: Progress) -> Table:
        """Read the wanted columns (see `Source.read`)."""
        path = fetch(FILE, progress)
        progress("read", f"{FILE.requirement} for the recipe in {folder}")
        return read_csv(path, wanted)
