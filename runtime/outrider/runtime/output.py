"""What commands print for programs to read."""

from __future__ import annotations

from typing import Any

import msgspec


def as_json(record: Any) -> str:
    """A record as JSON, indented for people too."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2).decode()
