"""Where rows come from: one table of sources, each reading the columns that a recipe declares."""

from __future__ import annotations

#: kind -> "module:class" of a `Source` (see `outrider.trainer.data.base`).
SOURCES: dict[str, str] = {
    "card-transactions": "outrider.trainer.data.card_transactions:CardTransactions",
    "breast-cancer": "outrider.trainer.data.breast_cancer:BreastCancer",
    "csv": "outrider.trainer.data.files:CsvFile",
    "parquet": "outrider.trainer.data.files:ParquetFile",
}
