"""What the tree frontends share: the way into Treelite, and digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from outrider.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import treelite


def through_treelite(what: str, convert: Callable[[], treelite.Model]) -> treelite.Model:
    """Run a Treelite import, naming the model where Treelite does not know it. Raises UnsupportedError."""
    import treelite

    try:
        return convert()
    except (treelite.TreeliteError, NotImplementedError, AssertionError, ValueError, AttributeError) as e:
        detail = next((line for line in reversed(str(e).splitlines()) if line.strip()), type(e).__name__)
        raise UnsupportedError(f"{what} is not supported: {detail.strip()}") from e


def digest(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
