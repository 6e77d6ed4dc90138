"""Where what was fetched or made once is kept, outside any project."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$OUTRIDER_CACHE`, or `outrider` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    chosen = os.environ.get("OUTRIDER_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider"
