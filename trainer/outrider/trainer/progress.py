"""How long work tells where it is: a callable that takes a stage and a detail."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

#: Called with a short stage name ("fetch", "train") and a detail in words, from the thread that does the work.
Progress: TypeAlias = Callable[[str, str], None]


def silent(stage: str, detail: str) -> None:
    """Tells nobody."""
