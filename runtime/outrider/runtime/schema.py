"""JSON Schemas of the manifest and of every message: `python -m outrider.runtime.schema DIR` writes one file each.

Records that travel as MessagePack have the same schema; their bytes appear as base64 text, as they would in JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from outrider.runtime.arguments import Parser
from outrider.runtime.bundle.manifest import Manifest
from outrider.runtime.cli import guarded
from outrider.runtime.errors import EXIT_OK
from outrider.runtime.messages import KINDS, Desired
from outrider.runtime.trust import BundleStatement, Envelope

DIALECT = "https://json-schema.org/draft/2020-12/schema"

RECORDS: dict[str, type[msgspec.Struct]] = {
    "manifest": Manifest,
    "desired": Desired,
    "envelope": Envelope,
    "bundle-statement": BundleStatement,
    **{kind: entry.record for kind, entry in KINDS.items()},
}


def schema_of(record: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of a record, with everything that it refers to."""
    return {"$schema": DIALECT, **msgspec.json.schema(record)}


def schema_files() -> dict[str, str]:
    """The text of every schema file, by file name."""
    return {
        f"{name}.json": msgspec.json.format(msgspec.json.encode(schema_of(record)), indent=2).decode() + "\n"
        for name, record in RECORDS.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the schema files to a folder, and remove those of records that are no more."""
    parser = Parser(prog="python -m outrider.runtime.schema", description="Write the JSON Schemas.")
    parser.add_argument("folder", type=Path, help="where to write, for example docs/schema")
    folder: Path = parser.parse_args(argv).folder
    files = schema_files()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for path in folder.glob("*.json"):
        if path.name not in files:
            path.unlink()
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(guarded(main))
