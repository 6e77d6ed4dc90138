"""`outrider fleet labels FILE`: the truth of predictions, from a CSV file with the columns `id` and `label`."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec
from rich.text import Text

from outrider.fleet.cli.commands import Shown
from outrider.runtime.api_client import FleetClient, LabelItem
from outrider.runtime.errors import BadDataError

BATCH = 10_000


def labels(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Post a file of labels, a batch at a time. Posting them again changes nothing."""
    path: Path = arguments.file
    accepted = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            items = _items(csv.DictReader(file), path)
            while batch := list(islice(items, BATCH)):
                accepted += client.post_labels(batch)
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise BadDataError(f"cannot read labels from {path}: {e}") from e
    return Shown({"accepted": accepted}, Text(f"{accepted} labels"))


def _items(reader: csv.DictReader[str], path: Path) -> Iterator[LabelItem]:
    missing = [name for name in ("id", "label") if name not in (reader.fieldnames or ())]
    if missing:
        raise BadDataError(f"{path} has no column {missing[0]!r}", hint="its first line must name id and label")
    for row in reader:
        try:
            yield msgspec.convert({"id": row["id"], "label": row["label"]}, LabelItem)
        except msgspec.ValidationError as e:  # also where a row has too few columns
            raise BadDataError(f"{path}, line {reader.line_num}: {e}") from e
